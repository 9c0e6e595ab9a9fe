"""A bias beside a weight over positions: one pass over the output gradients serves both."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.contributions.dense import Dense


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

    def found(self, values: Tensor) -> None:
        """What somebody else has come by.

        Args:
            values: ``[n, p]``.
        """
        self._values, self._grads = values, None


def sums_along(grads: Tensor, right: Tensor) -> Tensor:
    """``Σₜ grads[i, t]`` and ``Σₜ right[j, i, t] grads[i, t]`` in one product, ``[n, 1 + k, p]``.

    What reads the gradients for the one has them in cache for the other; as a product it takes no longer than the sum alone.

    Args:
        grads: ``[n, T, p]``.
        right: ``[k, n, T]``.
    """
    k, n, positions = right.shape
    rows = right.new_ones(n, 1 + k, positions)
    rows[:, 1:] = right.transpose(0, 1)
    return torch.bmm(rows, grads)
