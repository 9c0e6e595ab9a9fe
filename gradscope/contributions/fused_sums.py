"""Samples' gradients built once: added up for autograd and squared for the figures while they are in cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.contributions.figures import Figures
from gradscope.contributions.one_by_one import SMALL, OneByOne
from gradscope.contributions.precision import row_squares
from gradscope.contributions.products import turned
from gradscope.contributions.workspace import Workspace

#: As coverage shows it.
FUSED = "fused"


@dataclass(frozen=True, slots=True, eq=False)
class FusedSums:
    """What one pass over the samples' gradients gives.

    Attributes:
        total: ``Σᵢ hᵢ``, of the parameter's shape: what autograd would have computed.
        squares: ``‖hᵢ‖²``, float64 ``[n]``.
        second_moment: ``Σᵢ hᵢ²`` elementwise, of the parameter's shape; None where nobody asked.
        probes: ``uⱼᵀhᵢvⱼ`` from the factors, ``[n, k]``, which shares nothing with the total; None where nobody asked.
    """

    total: Tensor
    squares: Tensor
    second_moment: Tensor | None = None
    probes: Tensor | None = None

    def shaped(self, shape: torch.Size, *, transposed: bool = False, workspace: Workspace | None = None) -> FusedSums:
        """The same for a parameter of this shape, whose matrix was built the other way round if ``transposed``.

        Args:
            shape: the parameter's.
            transposed: whether it was.
            workspace: memory for the second moment; the total is autograd's own from now on.
        """

        def placed(matrix: Tensor, memory: Workspace | None = None) -> Tensor:
            return (turned(matrix, memory) if transposed else matrix).reshape(shape)

        second = None if self.second_moment is None else placed(self.second_moment, workspace)
        return FusedSums(placed(self.total), self.squares, second, self.probes)

    def joined(self, other: FusedSums) -> FusedSums:
        """The sums over these samples and the others, which come after them."""
        second = probes = None
        if self.second_moment is not None and other.second_moment is not None:
            second = self.second_moment.add_(other.second_moment)
        if self.probes is not None and other.probes is not None:
            probes = torch.cat([self.probes, other.probes])
        return FusedSums(self.total.add_(other.total), torch.cat([self.squares, other.squares]), second, probes)

    def figures(self) -> Figures:
        """What the report needs of it."""
        return Figures(self.squares, self.probes, self.second_moment, FUSED)


def sums_of_products(
    first: Tensor, second: Tensor, workspace: Workspace, *, moments: bool, alone: bool = False
) -> FusedSums:
    """Sums over samples of ``hᵢ = Σₜ first[i, t]ᵀ second[i, t]``, each built once.

    Args:
        first: ``[n, T, a]``.
        second: ``[n, T, b]``.
        workspace: scratch memory.
        moments: whether second moments are wanted.
        alone: whether threads share each product, however small, instead of the products of a batch.

    Returns:
        Sums of shape ``[a, b]``.
    """
    a, b = first.shape[2], second.shape[2]
    if not first.is_cpu or a * b < SMALL:
        chunk = workspace.room(a * b, first)
        products = (f.mT @ s for f, s in zip(first.split(chunk), second.split(chunk), strict=True))
        return sums_of_chunks(products, moments=moments)
    # More rows than columns are faster.
    other = a < b
    if other:
        first, second = second, first
    size = (first.shape[2], second.shape[2])
    built = OneByOne(
        first.shape[0], size, first, summed=True, moments=moments, memory=workspace, turned=other, alone=alone
    )
    built.take(first.mT, second, 0, workspace)
    return sums_one_by_one(built).shaped(torch.Size((a, b)), transposed=other, workspace=workspace)


def sums_one_by_one(built: OneByOne) -> FusedSums:
    """What has been built one by one."""
    if built.total is None:
        raise ValueError("the products were not added up")
    return FusedSums(built.total, built.squares(), built.second_moment)


def sums_of_chunks(chunks: Iterable[Tensor], *, moments: bool) -> FusedSums:
    """Sums over the gradients of a few samples at a time, ``[c, *shape]``; what they are built in is used up."""
    total = second = None
    squares = []
    for chunk in chunks:
        squares.append(row_squares(chunk))
        part = chunk.sum(0)
        total = part if total is None else total.add_(part)
        if moments:
            part = chunk.square_().sum(0)
            second = part if second is None else second.add_(part)
    if total is None:
        raise ValueError("there are no samples to add up")
    return FusedSums(total, torch.cat(squares), second)
