"""Contributions in full, for small parameters and for whatever only torch.func can describe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.contributions.contribution import Contribution, Probe, project
from gradscope.contributions.precision import BLOCK, row_squares, working
from gradscope.contributions.rows import RowOrder
from gradscope.wide import widen

#: Numbers that may wait for those of other parameters.
FEW = 1 << 16


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

    @property
    def short(self) -> bool:
        """Whether these are few numbers of a vector parameter: calls would cost more than what they compute."""
        values = self.values
        few = values.dim() == 2 and values.shape[1] <= BLOCK and values.numel() <= FEW
        return few and values.dtype in (torch.float32, torch.float64)

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
        order = RowOrder.of(sample_of_row, samples)
        if order.folded is not None:
            return Dense(order.gather(self.values).sum(1))
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


def settle_vectors(
    values: Sequence[Tensor], lefts: Sequence[Tensor], *, moments: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Figures of several vector parameters at once, since each operator counts.

    Args:
        values: contributions to each, ``[n, s]``, all of one shape.
        lefts: a direction for each, ``[s]``.
        moments: whether second moments are wanted.

    Returns:
        ``‖hᵢ‖²``, float64 ``[m, n]``; ``⟨hᵢ, R⟩``, float64 ``[m, n, 1]``; ``Σᵢ hᵢ²`` elementwise, ``[m, s]``, or None.
    """
    table = torch.stack(list(values))
    lengths: Tensor = torch.linalg.vector_norm(table, dim=2)
    second = table.square().sum(1) if moments else None
    along = table.mul_(torch.stack(list(lefts)).unsqueeze(1)).sum(2, keepdim=True)
    return widen(lengths).square_(), widen(along), second
