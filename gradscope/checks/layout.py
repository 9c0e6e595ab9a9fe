"""All parameters of a model as one float64 vector, so that gradients can be added, scaled and compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscope.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where each trainable parameter lies in the vector.

    Attributes:
        names: the parameters' first names; a tied parameter has one entry.
        parameters: the parameters themselves.
        slices: their places in the vector; a complex element takes two places.
    """

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    slices: tuple[slice, ...]

    @staticmethod
    def of(model: nn.Module) -> Layout:
        """The layout of the model's parameters that require a gradient.

        Raises:
            InvalidArgumentError: no parameter requires a gradient.
        """
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise InvalidArgumentError(
                f"{type(model).__name__} has no parameter that requires a gradient, so there is nothing to check."
            )
        slices, at = [], 0
        for _, p in named:
            length = p.numel() * (2 if p.is_complex() else 1)
            slices.append(slice(at, at + length))
            at += length
        return Layout(tuple(name for name, _ in named), tuple(p for _, p in named), tuple(slices))

    @property
    def size(self) -> int:
        """Length of the vector."""
        return int(self.slices[-1].stop)

    def vector(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """These tensors, one per parameter, end to end in float64 on the CPU; None counts as zeros."""
        parts = []
        for place, tensor in zip(self.slices, tensors, strict=True):
            if tensor is None:
                parts.append(torch.zeros(place.stop - place.start, dtype=torch.float64, device="cpu"))
                continue
            flat = tensor.detach()
            flat = flat.to_dense() if flat.layout is not torch.strided else flat
            flat = torch.view_as_real(flat.resolve_conj()) if flat.is_complex() else flat
            parts.append(flat.reshape(-1).cpu().to(torch.float64))
        return torch.cat(parts)

    def gradients(self) -> Tensor:
        """The present ``.grad`` of all parameters."""
        return self.vector(p.grad for p in self.parameters)

    def values(self) -> Tensor:
        """The present values of all parameters."""
        return self.vector(self.parameters)

    def places(self, owned: Sequence[bool]) -> Tensor:
        """Indices of the vector that belong to the parameters marked in ``owned``."""
        ranges = [
            torch.arange(s.start, s.stop, device="cpu") for s, mine in zip(self.slices, owned, strict=True) if mine
        ]
        return torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.long, device="cpu")
