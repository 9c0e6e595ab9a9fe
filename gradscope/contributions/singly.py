"""Products built one sample at a time, and reduced while they are in cache: the fastest way for large ones on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.contributions.workspace import Workspace

#: Multiply-adds of one sample's product, from which on its three or four calls weigh little.
LARGE = 1 << 22


#: Directions ``uⱼ`` and ``vⱼ`` for the rows and the columns of a product.
Directions = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def build_singly(
    first: Tensor, second: Tensor, workspace: Workspace, *, moment: Tensor | None, total: Tensor | None = None,
    directions: Directions | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Figures of ``hᵢ = Σₜ first[i, t]ᵀ second[i, t]``, each of which exists for a moment.

    Args:
        first: ``[n, T, a]``, real; with ``a ≥ b`` products are fastest.
        second: ``[n, T, b]``.
        workspace: scratch memory.
        moment: memory for ``Σᵢ hᵢ²`` elementwise, ``[a, b]``, with anything in it; None where nobody asked.
        total: the same for ``Σᵢ hᵢ``.
        directions: for probes, or None.

    Returns:
        ``‖hᵢ‖²``, float64 ``[n]``, and ``uⱼᵀhᵢvⱼ`` from the factors alone, float64 ``[n, k]``; None where nobody asked.
    """
    (n, _, a), b = first.shape, second.shape[2]
    lengths = first.new_empty(n, a)
    along = None if directions is None else _Along(first, second, directions)
    rows = min(a, workspace.room(b, first))
    columns = second.unbind()
    for start in range(0, a, rows):
        band = slice(start, min(start + rows, a))
        sums = None if total is None else total[band]
        squares = None if moment is None else moment[band]
        product = workspace.buffer("product", (band.stop - start, b), first)
        lines = zip(first[:, :, band].mT.unbind(), columns, lengths[:, band].unbind(), strict=True)
        for i, (row, column, length) in enumerate(lines):
            # The first sample's gradient begins the sum.
            built = torch.mm(row, column, out=product if i or sums is None else sums)
            torch.linalg.vector_norm(built, dim=1, out=length)
            if squares is not None:
                torch.mul(built, built, out=squares) if i == 0 else squares.addcmul_(built, built)
            if i and sums is not None:
                sums.add_(built)
            if along is not None and not start:
                along.take(i)
    return lengths.double().square_().sum(1), None if along is None else along.probes()


class _Along:
    """Factors along directions, one sample at a time: while its product is built both are in cache."""

    def __init__(self, first: Tensor, second: Tensor, directions: Directions) -> None:
        self.factors = first.unbind(), second.unbind()
        self.directions = directions
        k = len(directions[0])
        self.found = tuple(first.new_empty(k, *first.shape[:2]) for _ in self.factors)

    def take(self, i: int) -> None:
        for factor, directions, found in zip(self.factors, self.directions, self.found, strict=True):
            for direction, into in zip(directions, found, strict=True):
                torch.mv(factor[i], direction, out=into[i])

    def probes(self) -> Tensor:
        left, right = self.found
        return left.mul_(right).sum(2).double().T
