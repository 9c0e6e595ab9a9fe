"""Contributions of tables: each looked-up row received what came back at its position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.contributions.contribution import Contribution, Probe, project
from gradscope.contributions.precision import row_squares, working
from gradscope.contributions.rows import RowOrder
from gradscope.wide import wide_dtype, widen


class Scatter(Contribution):
    """``hᵢ[v] = Σ_{t: ids[i, t] = v} grads[i, t]``.

    Args:
        ids: int64 ``[n, T]``, the table rows that were read.
        grads: ``[n, T, p]``, gradient of what was read.
        shape: the table's, ``[V, p]``.
    """

    def __init__(self, ids: Tensor, grads: Tensor, shape: torch.Size) -> None:
        self.ids = ids
        self.grads = working(grads)
        self.shape = shape
        self._segments: tuple[Tensor, Tensor] | None = None

    @property
    def samples(self) -> int:
        return self.ids.shape[0]

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.grads.nbytes

    def segments(self) -> tuple[Tensor, Tensor]:
        """Sums of the rows that one sample reads more than once.

        Returns:
            The sums ``[n·T, p]`` (unused ones are zero) and the key ``i·V + v`` of each. Nothing here waits for a device.
        """
        if self._segments is None:
            self._segments = self._summed()
        return self._segments

    def _summed(self) -> tuple[Tensor, Tensor]:
        n, positions = self.ids.shape
        sample = torch.arange(n, device=self.ids.device).unsqueeze(1)
        unsorted = (sample * self.shape[0] + self.ids).flatten()
        keys, order = torch.sort(unsorted)
        starts = torch.ones_like(keys, dtype=torch.bool)
        torch.ne(keys[1:], keys[:-1], out=starts[1:])
        if keys.is_cpu and bool(starts.all()):
            # No sample reads a row twice: positions, say.
            return self.grads.reshape(n * positions, -1), unsorted
        segment = starts.cumsum(0) - 1
        sums = torch.zeros_like(self.grads.reshape(n * positions, -1))
        sums.index_add_(0, segment, self.grads.reshape(n * positions, -1)[order])
        segment_keys = torch.zeros_like(keys).scatter_(0, segment, keys)
        return sums, segment_keys

    def squared_norms(self) -> Tensor:
        if self.ids.numel() == 0:
            return torch.zeros(self.samples, dtype=wide_dtype(self.grads).to_real(), device=self.grads.device)
        sums, keys = self.segments()
        squares = row_squares(sums)
        result = torch.zeros(self.samples, dtype=squares.dtype, device=squares.device)
        return result.index_add_(0, keys // self.shape[0], squares)

    def probe(self, probe: Probe) -> Tensor:
        n, positions = self.ids.shape
        right = project(self.grads.flatten(0, 1), probe.right)
        products = probe.left[:, self.ids.flatten()] * right
        return widen(products.reshape(len(products), n, positions).sum(2)).T

    def dense(self) -> Tensor:
        n = self.samples
        sample = torch.arange(n, device=self.ids.device).unsqueeze(1)
        table = self.grads.new_zeros(n * self.shape[0], self.grads.shape[2])
        table.index_add_(0, (sample * self.shape[0] + self.ids).flatten(), self.grads.flatten(0, 1))
        return table.reshape(n, *self.shape)

    def select(self, index: Tensor) -> Scatter:
        return Scatter(self.ids[index], self.grads[index], self.shape)

    def regroup(self, sample_of_row: Tensor, samples: int) -> Scatter:
        order = RowOrder.of(sample_of_row, samples)
        # Padding reads row 0 with a gradient of zero.
        return Scatter(order.gather(self.ids).flatten(1, 2), order.gather(self.grads).flatten(1, 2), self.shape)

    def second_moment(self) -> Tensor:
        total = self.grads.new_zeros(self.shape)
        if self.ids.numel():
            sums, keys = self.segments()
            total.index_add_(0, keys % self.shape[0], sums.abs().square())
        return total

    def joined(self, others: Sequence[Scatter]) -> Scatter:
        """All uses of one table as one: their positions side by side."""
        uses = (self, *others)
        return Scatter(torch.cat([use.ids for use in uses], 1), torch.cat([use.grads for use in uses], 1), self.shape)
