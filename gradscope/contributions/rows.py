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

    def gather(self, rows: Tensor) -> Tensor:
        """``[R, ...]`` as ``[n, width, ...]``."""
        laid_out = rows.new_zeros(self.samples * self.width, *rows.shape[1:])
        laid_out[self.slot] = rows[self.order]
        return laid_out.reshape(self.samples, self.width, *rows.shape[1:])


#: Orders of the tensors that are still there.
_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
