"""Sequences of different lengths, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """Where packed rows lie among ``[T, n]``, longest sequence first.

    Attributes:
        sizes: how many sequences each step has, int64 ``[T]`` on the CPU.
        present: which steps each sequence has, bool ``[T, n]``.
        last: each sequence's last step, int64 ``[n]``.
        order: where each sample's sequence lies, int64 ``[n]``; None where samples lie as they came.
        given: the sample of each place, int64 ``[n]``; None likewise.
    """

    sizes: Tensor
    present: Tensor
    last: Tensor
    order: Tensor | None
    given: Tensor | None

    @classmethod
    def of(cls, packed: PackedSequence) -> Lengths:
        """Those of a packed sequence."""
        sizes, device = packed.batch_sizes, packed.data.device
        present = (torch.arange(int(sizes[0])) < sizes.unsqueeze(1)).to(device)
        given = packed.sorted_indices
        order = None if given is None else torch.argsort(given)
        return cls(sizes, present, present.sum(0) - 1, order, given)

    def spread(self, rows: Tensor) -> Tensor:
        """Packed rows ``[R, d]`` as ``[T, n, d]``, zero where there are none."""
        spread = rows.new_zeros(*self.present.shape, rows.shape[1])
        spread[self.present] = rows
        return spread

    def sort(self, states: Tensor | None) -> Tensor | None:
        """States ``[·, n, p]``, or None, in the order of the places."""
        return states if states is None or self.given is None else states[:, self.given]
