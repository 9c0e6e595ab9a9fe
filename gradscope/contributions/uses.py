"""A parameter that is used several times: its uses are summed per sample before squaring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.contributions.contribution import Contribution, Probe
from gradscope.contributions.dense import Dense
from gradscope.contributions.outer import Outer
from gradscope.contributions.precision import row_squares
from gradscope.contributions.scatter import Scatter
from gradscope.wide import widen


def sum_of_uses(uses: Sequence[Contribution]) -> Contribution:
    """One contribution for all uses of one parameter by the same samples."""
    products: dict[int, list[Outer]] = {}
    tables: list[Scatter] = []
    full: list[Dense] = []
    merged: list[Contribution] = []
    for use in uses:
        if isinstance(use, Outer):
            products.setdefault(use.inputs.shape[1], []).append(use)
        elif isinstance(use, Scatter):
            tables.append(use)
        elif isinstance(use, Dense):
            full.append(use)
        else:
            merged.append(use)
    # All at once: one after another, a weight that a loop uses a hundred times would be copied a hundred times.
    merged += [first.joined(rest) if rest else first for first, *rest in products.values()]
    merged += [tables[0].joined(tables[1:])] if len(tables) > 1 else tables
    merged += [full[0].joined(full[1:])] if len(full) > 1 else full
    return merged[0] if len(merged) == 1 else Uses(merged)


class Uses(Contribution):
    """``hᵢ = Σ over uses``, for uses of different kinds (a table that is also a head, say)."""

    def __init__(self, uses: Sequence[Contribution]) -> None:
        self.uses = tuple(uses)
        self.shape = self.uses[0].shape

    @property
    def samples(self) -> int:
        return self.uses[0].samples

    @property
    def nbytes(self) -> int:
        return sum(use.nbytes for use in self.uses)

    def squared_norms(self) -> Tensor:
        # Cross terms between the uses are part of the norm.
        if len(self.uses) == 2:
            for first, second in (self.uses, self.uses[::-1]):
                if isinstance(first, Scatter) and isinstance(second, Outer) and second.inputs.shape[1] == 1:
                    cross = 2 * inner_products(first, second)
                    separate = first.squared_norms() + second.squared_norms()
                    total = separate + cross
                    # Where the uses cancel, the sum of the three has lost its digits.
                    if bool((total > 1e-3 * separate).all()):
                        return total
        return torch.cat([row_squares(self.one(i).unsqueeze(0)) for i in range(self.samples)])

    def probe(self, probe: Probe) -> Tensor:
        return torch.stack([use.probe(probe) for use in self.uses]).sum(0)

    def one(self, i: int) -> Tensor:
        total = self.uses[0].one(i).clone()
        for use in self.uses[1:]:
            total += use.one(i).reshape(self.shape)
        return total

    def dense(self) -> Tensor:
        return torch.stack([use.dense() for use in self.uses]).sum(0)

    def select(self, index: Tensor) -> Uses:
        return Uses([use.select(index) for use in self.uses])

    def regroup(self, sample_of_row: Tensor, samples: int) -> Uses:
        return Uses([use.regroup(sample_of_row, samples) for use in self.uses])


def inner_products(table: Scatter, head: Outer) -> Tensor:
    """``⟨hᵢ of the table, hᵢ of the head⟩``, float64 ``[n]``, at T² · d instead of V · d.

    ``Σ_{s,t} headgrad[i, t, ids[i, s]] · ⟨tablegrad[i, s], headinput[i, t]⟩``.
    """
    picked = torch.gather(head.grads[:, 0], 2, table.ids.unsqueeze(1).expand(-1, head.grads.shape[2], -1))  # [n, t, s]
    products = head.inputs[:, 0] @ table.grads.mH
    crossed = picked * products
    return widen(crossed.real if crossed.is_complex() else crossed).sum((1, 2))
