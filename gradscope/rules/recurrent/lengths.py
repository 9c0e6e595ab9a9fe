"""Sequences of different lengths, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """Where packed rows lie among ``[T, n]``, the longest sequence first.

    Attributes:
        sizes: how many sequences each step has, int64 ``[T]`` on the CPU.
        places: where each row lies, int64 ``[R]``.
        absent: which steps a sequence does not have, bool ``[T, n, 1]``.
        last: each sequence's last step, int64 ``[n]``.
        given: which sample each sequence is, int64 ``[n]``; None where they lie as they came.
        order: where each sample's sequence lies, int64 ``[n]``; None likewise.
    """

    sizes: Tensor
    places: Tensor
    absent: Tensor
    last: Tensor
    given: Tensor | None
    order: Tensor | None

    @classmethod
    def of(cls, packed: PackedSequence) -> Lengths:
        """Those of a packed sequence."""
        sizes, device, given = packed.batch_sizes, packed.data.device, packed.sorted_indices
        # On the CPU, where the sizes are: a device need not be waited for.
        present = torch.arange(int(sizes[0]), device="cpu") < sizes.unsqueeze(1)
        places, last = present.flatten().nonzero()[:, 0], present.sum(0) - 1
        order = None if given is None else torch.argsort(given)
        return cls(
            sizes, places.to(device), ~present.unsqueeze(2).to(device), last.to(device), given, order
        )  # fmt: skip

    def spread(self, rows: Tensor) -> Tensor:
        """Packed rows ``[R, d]`` as ``[T, n, d]``, zero where there are none."""
        steps, n = self.absent.shape[:2]
        return rows.new_zeros(steps * n, rows.shape[1]).index_copy_(0, self.places, rows).view(steps, n, -1)

    def pack(self, spread: Tensor) -> Tensor:
        """``[T, n, d]`` as packed rows ``[R, d]``."""
        return spread.flatten(0, 1)[self.places]

    def sort(self, states: Tensor) -> Tensor:
        """States ``[·, n, p]`` of the samples, as their sequences lie."""
        return states if self.given is None else states[:, self.given]
