"""Contributions in full, for small parameters and for whatever only torch.func can describe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.contributions.contribution import Contribution, Probe, project
from gradscope.contributions.precision import row_squares, working


class Dense(Contribution):
    """``hᵢ = values[i]``.

    Args:
        values: ``[n, *shape]``.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.shape = values.shape[1:]

    @property
    def samples(self) -> int:
        return self.values.shape[0]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def squared_norms(self) -> Tensor:
        return row_squares(self.values)

    def probe(self, probe: Probe) -> Tensor:
        first = probe.left.shape[1]
        if probe.right.shape[1] == 1:
            rows = working(self.values).reshape(self.samples, first)
            return widen(project(rows, probe.left * probe.right).T)
        right = project(working(self.values).reshape(self.samples * first, -1), probe.right)
        return widen((right.reshape(-1, self.samples, first) * probe.left.unsqueeze(1)).sum(2).T)

    def dense(self) -> Tensor:
        return self.values

    def select(self, index: Tensor) -> Dense:
        return Dense(self.values[index])

    def regroup(self, sample_of_row: Tensor, samples: int) -> Dense:
        grouped = self.values.new_zeros(samples, *self.shape)
        return Dense(grouped.index_add_(0, sample_of_row, self.values))

    def joined(self, others: Sequence[Dense]) -> Dense:
        """All uses of one parameter as one: their sum."""
        total = working(self.values).clone()
        for use in others:
            total += use.values
        return Dense(total)

    def second_moment(self) -> Tensor:
        return working(self.values).abs().square().sum(0)


def widen(tensor: Tensor) -> Tensor:
    """The tensor in double precision, real or complex."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
