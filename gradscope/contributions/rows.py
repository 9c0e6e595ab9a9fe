"""Rows that belong to samples in any order, laid out sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class RowOrder:
    """Where each row goes when rows are gathered sample by sample.

    Samples with fewer rows than the fullest are padded with rows of zeros, which add nothing to any product of factors.

    Args:
        sample_of_row: int64 ``[R]``, the sample that each row belongs to.
        samples: n.
    """

    def __init__(self, sample_of_row: Tensor, samples: int) -> None:
        self.samples = samples
        self.order = torch.argsort(sample_of_row, stable=True)
        counts = torch.bincount(sample_of_row, minlength=samples)
        self.width = int(counts.max()) if sample_of_row.numel() else 0
        self.folded = self._folded(sample_of_row)
        starts = counts.cumsum(0) - counts
        sorted_samples = sample_of_row[self.order]
        position = torch.arange(sample_of_row.numel(), device=sample_of_row.device) - starts[sorted_samples]
        self.slot = sorted_samples * self.width + position

    @classmethod
    def of(cls, sample_of_row: Tensor, samples: int) -> RowOrder:
        """The same, found out once for each tensor: the host waits for the device to say how many rows the fullest has."""
        known: RowOrder | None = _KNOWN.get(sample_of_row)
        if known is None or known.samples != samples:
            known = cls(sample_of_row, samples)
            _KNOWN[sample_of_row] = known
        return known

    def _folded(self, sample_of_row: Tensor) -> int | None:
        """Which dimension the samples had before they and their rows were made one: 0, 1, or neither."""
        if self.width * self.samples != sample_of_row.numel():
            return None
        samples = torch.arange(self.samples, device=sample_of_row.device)
        if torch.equal(sample_of_row, samples.repeat_interleave(self.width, output_size=sample_of_row.numel())):
            return 0
        return 1 if torch.equal(sample_of_row, samples.repeat(self.width)) else None

    def gather(self, rows: Tensor) -> Tensor:
        """``[R, ...]`` as ``[n, width, ...]``; where samples are folded, a view."""
        if self.folded == 0:
            return rows.reshape(self.samples, self.width, *rows.shape[1:])
        if self.folded == 1:
            return rows.reshape(self.width, self.samples, *rows.shape[1:]).transpose(0, 1)
        laid_out = rows.new_zeros(self.samples * self.width, *rows.shape[1:])
        laid_out[self.slot] = rows[self.order]
        return laid_out.reshape(self.samples, self.width, *rows.shape[1:])


#: Orders of the tensors that are still there.
_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
