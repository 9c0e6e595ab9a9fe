"""A bias beside a weight over positions: one pass over the output gradients serves both."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.contributions.dense import Dense
from gradscope.wide import widen


class OuterBias(Dense):
    """``hᵢ = Σₜ grads[i, t]``, computed where the weight looks along its directions, or when somebody asks.

    Args:
        grads: ``[n, T, p]``, gradient of the layer's output.
    """

    def __init__(self, grads: Tensor) -> None:
        self._grads: Tensor | None = grads
        self._values: Tensor | None = None
        self._samples = grads.shape[0]
        self.shape = grads.shape[2:]

    @property
    def samples(self) -> int:
        return self._samples

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """``[n, p]``; the gradients are let go."""
        if self._values is None and self._grads is not None:
            self.found(self._grads.sum(1))
        if self._values is None:
            raise RuntimeError("neither the sums nor what they are made of")
        return self._values

    def memory(self) -> Tensor | None:
        """Memory for the values, where nobody has come by them yet."""
        grads = self._grads
        return None if grads is None else grads.new_empty(self._samples, *self.shape)

    def found(self, values: Tensor) -> None:
        """What somebody else has come by.

        Args:
            values: ``[n, p]``.
        """
        self._values, self._grads = values, None


def sums_along(factor: Tensor, weights: Tensor, *, ones: bool = False) -> Tensor:
    """``Σₜ weights[j, i, t] factor[i, t]``, ``[n, k, p]``; with ``ones`` also ``Σₜ factor[i, t]``, as the first of ``1 + k``.

    What reads the factor for the one has it in cache for the other; as one product they take no longer than the sum alone.

    Args:
        factor: ``[n, T, p]``.
        weights: ``[k, n·T]``.
        ones: whether the sum without weights is wanted too.
    """
    n, positions = factor.shape[:2]
    rows = weights.reshape(-1, n, positions).transpose(0, 1)
    if ones:
        rows = torch.cat([rows.new_ones(n, 1, positions), rows], dim=1)
    return torch.bmm(rows, factor)


def along(sums: Tensor, directions: Tensor) -> Tensor:
    """``⟨sums[i, j], directionⱼ⟩``, in double precision ``[n, k]``.

    Args:
        sums: ``[n, k, p]``.
        directions: ``[k, p]``.
    """
    return widen((sums * directions).sum(2))
