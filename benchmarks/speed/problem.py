"""A model with a batch: what every tool is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One training step, without an optimizer.

    Attributes:
        model: in training mode, on its device.
        inputs: what the model is called with; dimension 0 of each is the sample.
        targets: classes, ``[n]`` or ``[n, T]``.
        autocast: dtype of autocast around forward and loss; None for none.
        chunk: how many samples whole-model ``vmap`` takes at once; None for all.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    targets: Tensor
    autocast: torch.dtype | None = None
    chunk: int | None = None

    @property
    def samples(self) -> int:
        """How many samples the batch has."""
        return self.targets.shape[0]

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.targets.device

    def precision(self) -> torch.autocast:
        """The context in which forward and loss run."""
        return torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def loss(self, model: Callable[..., Tensor] | None = None) -> Tensor:
        """Mean loss of the batch."""
        with self.precision():
            return cross_entropy((model or self.model)(*self.inputs), self.targets)

    def sample_losses(self, model: Callable[..., Tensor] | None = None) -> Tensor:
        """Loss of each sample, ``[n]``; their mean is ``loss()``."""
        with self.precision():
            scores = (model or self.model)(*self.inputs)
            flat = F.cross_entropy(scores.flatten(0, -2), self.targets.flatten(), reduction="none")
        return flat.reshape(self.samples, -1).mean(1)

    def rows(self, start: int, stop: int) -> Problem:
        """The same model with only these samples."""
        return self.of(self.model, tuple(each[start:stop] for each in self.inputs), self.targets[start:stop])

    def of(self, model: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor) -> Problem:
        """The same settings with another model and batch."""
        return Problem(model, inputs, targets, self.autocast, self.chunk)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean over all that is to be predicted; samples have the same number each, so also the mean over samples."""
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten())


@dataclass(frozen=True, slots=True)
class Builder:
    """How a problem is made: the same weights and batch each time.

    Attributes:
        title: what the table calls it.
        build: makes model, inputs and targets; takes the sizes.
        sizes: of the real measurement.
        tiny: those that a smoke test changes.
        seconds: rough time of a plain step on two CPU cores: how much fits into a run.
        autocast: see ``Problem``.
        needs: modules that it imports.
    """

    title: str
    build: Callable[..., tuple[nn.Module, tuple[Tensor, ...], Tensor]]
    sizes: dict[str, int]
    tiny: dict[str, int]
    seconds: float
    autocast: torch.dtype | None = None
    chunk: int | None = None
    needs: tuple[str, ...] = field(default=())

    def __call__(self, device: torch.device, *, tiny: bool = False, **sizes: int) -> Problem:
        """Build it.

        Args:
            device: where to.
            tiny: with the sizes of a smoke test.
            sizes: those that are to differ.
        """
        torch.manual_seed(0)
        given = {**self.sizes, **(self.tiny if tiny else {}), **sizes}
        model, inputs, targets = self.build(**given)
        moved = tuple(each.to(device) for each in inputs)
        return Problem(model.to(device).train(), moved, targets.to(device), self.autocast, self.chunk)
