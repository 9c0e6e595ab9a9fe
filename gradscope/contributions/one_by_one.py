"""Samples' gradients built one after another, and reduced while they are in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.contributions.products import pieces
from gradscope.contributions.workspace import Workspace

#: Products below this many elements are built several samples at a time: calls would cost more than they do.
SMALL = 1 << 14

#: Rows of a block, at least: two threads share thinner products badly.
THIN = 512

#: Products of fewer multiply-adds, or of fewer elements, are shared out among threads as a batch: less waiting for each other.
ALONE, WIDE = 1 << 25, 1 << 16

#: Directions ``uⱼ`` and ``vⱼ`` for the rows and the columns of a product.
Directions = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


class OneByOne:
    """Sums over samples of products ``hᵢ = firstᵢ secondᵢ`` and of their squares, filled in a few samples at a time.

    A large product is shared by all threads, which is faster than a batch of them, and what comes after it finds it in cache.

    Args:
        samples: n.
        size: ``(a, b)`` of the products.
        like: a tensor of their dtype and device.
        summed: whether the sum is wanted.
        moments: whether the elementwise sum of squares is wanted.
        directions: for probes from the factors, which are in cache too, or None.

    Attributes:
        total: ``Σᵢ hᵢ``, ``[a, b]``, or None.
        second_moment: ``Σᵢ hᵢ²``, ``[a, b]``, or None.
    """

    def __init__(
        self, samples: int, size: tuple[int, int], like: Tensor,
        *, summed: bool, moments: bool, directions: Directions | None = None,
    ) -> None:  # fmt: skip
        self.total = like.new_empty(size) if summed else None
        self.second_moment = like.new_empty(size) if moments else None
        self._lengths = like.new_empty(samples, size[0])
        self._directions = directions
        self._probes: list[Tensor] = []

    def take(self, first: Tensor, second: Tensor, sample: int, workspace: Workspace) -> None:
        """Build and take the products of some samples.

        Args:
            first: ``[c, a, T]``.
            second: ``[c, T, b]``.
            sample: the first one's index; samples come in order.
            workspace: scratch memory.
        """
        (c, a, length), b = first.shape, second.shape[2]
        if self._directions is None and (a * b * length < ALONE or a * b < WIDE):
            for i in range(0, c, pieces(c, workspace.room(a * b, first))):
                part = slice(i, i + pieces(c, workspace.room(a * b, first)))
                product = workspace.buffer("product", (*first[part].shape[:2], b), first)
                built = torch.bmm(first[part], second[part], out=product)
                self._take(built, slice(sample + i, sample + i + len(built)), slice(None))
            return
        rows = pieces(a, workspace.room(b, first, min(a, THIN)))
        columns = second.unbind()
        for start in range(0, a, rows):
            block = slice(start, min(a, start + rows))
            product = workspace.buffer("product", (1, block.stop - start, b), first)
            for i, (row, column) in enumerate(zip(first[:, block].unbind(), columns, strict=True)):
                torch.mm(row, column, out=product[0])
                self._take(product, slice(sample + i, sample + i + 1), block)
                if self._directions is not None and not start:
                    self._probes.append(probes_of(first[i].mT, column, self._directions))

    def _take(self, built: Tensor, samples: slice, rows: slice) -> None:
        torch.linalg.vector_norm(built, dim=2, out=self._lengths[samples, rows])
        fresh = samples.start == 0
        for one in built.unbind():
            if self.second_moment is not None:
                squares = self.second_moment[rows]
                torch.mul(one, one, out=squares) if fresh else squares.addcmul_(one, one)
            if self.total is not None:
                sums = self.total[rows]
                sums.copy_(one) if fresh else sums.add_(one)
            fresh = False

    def squares(self) -> Tensor:
        """``‖hᵢ‖²``, float64 ``[n]``."""
        return self._lengths.double().square_().sum(1)

    def probes(self) -> Tensor | None:
        """``uⱼᵀhᵢvⱼ``, float64 ``[n, k]``; None without directions."""
        return torch.stack(self._probes).double() if self._probes else None


def probes_of(first: Tensor, second: Tensor, directions: Directions) -> Tensor:
    """``Σₜ (first[i, t]·uⱼ)(second[i, t]·vⱼ)``, ``[..., k]``, of factors ``[..., T, a]`` and ``[..., T, b]``."""
    products = [_along(first, u).mul_(_along(second, v)).sum(-1) for u, v in zip(*directions, strict=True)]
    return torch.stack(products, dim=-1)


def _along(factor: Tensor, direction: Tensor) -> Tensor:
    # A transposed factor would be copied.
    if factor.stride(-1) == 1:
        return torch.matmul(factor, direction)
    return torch.matmul(direction.unsqueeze(0), factor.mT).squeeze(-2)
