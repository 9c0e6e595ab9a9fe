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

#: Multiply-adds of one sample's product from which on its calls weigh little.
LARGE = 1 << 22

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
        memory: for the sum of squares; by default fresh.
        turned: whether the sums will be turned round, so that scratch memory will do.
        alone: whether each product is a call of its own; by default large ones are.

    Attributes:
        size: ``(a, b)``.
        total: ``Σᵢ hᵢ``, ``[a, b]``, or None.
        second_moment: ``Σᵢ hᵢ²``, ``[a, b]``, or None.
    """

    def __init__(
        self, samples: int, size: tuple[int, int], like: Tensor,
        *, summed: bool, moments: bool, directions: Directions | None = None, memory: Workspace | None = None,
        turned: bool = False, alone: bool | None = None,
    ) -> None:  # fmt: skip
        memory = memory or Workspace()
        self.size = size
        self.total = None
        if summed:
            self.total = memory.buffer("total", size, like) if turned else like.new_empty(size)
        self.second_moment = memory.moment(torch.Size(size), like, turned=turned) if moments else None
        self._lengths = like.new_empty(samples, size[0])
        self._along = None if directions is None else Along(samples, like, directions)
        self._alone = alone

    def take(self, first: Tensor, second: Tensor, sample: int, workspace: Workspace) -> None:
        """Build and take the products of some samples.

        Args:
            first: ``[c, a, T]``.
            second: ``[c, T, b]``.
            sample: the first one's index; samples come in order.
            workspace: scratch memory.
        """
        (c, a, length), b = first.shape, second.shape[2]
        alone = self._alone if self._alone is not None else a * b * length >= ALONE and a * b >= WIDE
        if self._along is None and not alone:
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
                if self._along is not None and not start:
                    self._along.take(first[i].mT, column, sample + i)

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
        return None if self._along is None else self._along.probes()


class Along:
    """Factors along directions, one sample after another, while they are in cache.

    Args:
        samples: n.
        like: a tensor of the factors' dtype and device.
        directions: for probes.
    """

    def __init__(self, samples: int, like: Tensor, directions: Directions) -> None:
        self._samples, self._like, self._directions = samples, like, directions
        self._found: tuple[Tensor, Tensor] | None = None

    def take(self, first: Tensor, second: Tensor, i: int) -> None:
        """One sample's factors, ``[T, a]`` and ``[T, b]``."""
        if self._found is None:
            shape = (len(self._directions[0]), self._samples, first.shape[0])
            self._found = self._like.new_empty(shape), self._like.new_empty(shape)
        for factor, directions, found in zip((first, second), self._directions, self._found, strict=True):
            for direction, into in zip(directions, found, strict=True):
                torch.mv(factor, direction, out=into[i])

    def probes(self) -> Tensor | None:
        """``uⱼᵀhᵢvⱼ``, float64 ``[n, k]``."""
        if self._found is None:
            return None
        left, right = self._found
        return left.mul_(right).sum(2).double().T


def probes_of(first: Tensor, second: Tensor, directions: Directions) -> Tensor:
    """``Σₜ (first[i, t]·uⱼ)(second[i, t]·vⱼ)``, ``[..., k]``, of factors ``[..., T, a]`` and ``[..., T, b]``."""
    products = [_along(first, u).mul_(_along(second, v)).sum(-1) for u, v in zip(*directions, strict=True)]
    return torch.stack(products, dim=-1)


def _along(factor: Tensor, direction: Tensor) -> Tensor:
    # A transposed factor would be copied.
    if factor.stride(-1) == 1:
        return torch.matmul(factor, direction)
    return torch.matmul(direction.unsqueeze(0), factor.mT).squeeze(-2)
