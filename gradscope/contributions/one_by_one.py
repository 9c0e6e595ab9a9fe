"""Samples' gradients built one after another, and reduced while they are in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.contributions.products import pieces
from gradscope.contributions.workspace import Workspace
from gradscope.wide import widen

#: Products below this many elements are built several samples at a time: calls would cost more than they do.
SMALL = 1 << 14

#: Rows of a block, at least: two threads share thinner products badly.
THIN = 512

#: Products of fewer multiply-adds, or of fewer elements, are shared out among threads as a batch: less waiting for each other.
ALONE, WIDE = 1 << 25, 1 << 16

#: Multiply-adds of one sample's product from which on its calls weigh little.
LARGE = 1 << 22


class OneByOne:
    """Sums over samples of products ``hᵢ = firstᵢ secondᵢ`` and of their squares, filled in a few samples at a time.

    A large product is shared by all threads, which is faster than a batch of them, and what comes after it finds it in cache.

    Args:
        samples: n.
        size: ``(a, b)`` of the products.
        like: a tensor of their dtype and device.
        summed: whether the sum is wanted.
        moments: whether the elementwise sum of squares is wanted.
        memory: for the sum of squares; by default fresh.
        turned: whether the sums will be turned round, so that scratch memory will do.
        alone: whether threads share each product, however small, instead of the products of a batch.

    Attributes:
        size: ``(a, b)``.
        total: ``Σᵢ hᵢ``, ``[a, b]``, or None.
        second_moment: ``Σᵢ hᵢ²``, ``[a, b]``, or None.
    """

    def __init__(
        self, samples: int, size: tuple[int, int], like: Tensor,
        *, summed: bool, moments: bool, memory: Workspace | None = None, turned: bool = False, alone: bool = False,
    ) -> None:  # fmt: skip
        memory = memory or Workspace()
        self.size = size
        self.total = None
        if summed:
            self.total = memory.buffer("total", size, like) if turned else like.new_empty(size)
        self.second_moment = memory.moment(torch.Size(size), like, turned=turned) if moments else None
        self._lengths = like.new_empty(samples, size[0])
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
        if self._alone or (a * b * length >= ALONE and a * b >= WIDE):
            rows = pieces(a, workspace.room(b, first, min(a, THIN)))
            for start in range(0, a, rows):
                self._take_alone(first, second, sample, slice(start, min(a, start + rows)), workspace)
            return
        for i in range(0, c, pieces(c, workspace.room(a * b, first))):
            part = slice(i, i + pieces(c, workspace.room(a * b, first)))
            product = workspace.buffer("product", (*first[part].shape[:2], b), first)
            built = torch.bmm(first[part], second[part], out=product)
            self._take(built, slice(sample + i, sample + i + len(built)))

    def _take_alone(self, first: Tensor, second: Tensor, sample: int, rows: slice, workspace: Workspace) -> None:
        product = workspace.buffer("product", (rows.stop - rows.start, second.shape[2]), first)
        total = None if self.total is None else self.total[rows]
        moment = None if self.second_moment is None else self.second_moment[rows]
        lengths = self._lengths[sample : sample + len(first), rows].unbind()
        parts = zip(first[:, rows].unbind(), second.unbind(), lengths, strict=True)
        for i, (left, right, length) in enumerate(parts, sample):
            # The first one is the sum so far.
            built = torch.mm(left, right, out=product if i or total is None else total)
            torch.linalg.vector_norm(built, dim=1, out=length)
            if moment is not None:
                moment.addcmul_(built, built) if i else torch.mul(built, built, out=moment)
            if total is not None and i:
                total.add_(built)

    def _take(self, built: Tensor, samples: slice) -> None:
        torch.linalg.vector_norm(built, dim=2, out=self._lengths[samples])
        fresh = samples.start == 0
        for one in built.unbind():
            if self.second_moment is not None:
                squares = self.second_moment
                torch.mul(one, one, out=squares) if fresh else squares.addcmul_(one, one)
            if self.total is not None:
                self.total.copy_(one) if fresh else self.total.add_(one)
            fresh = False

    def squares(self) -> Tensor:
        """``‖hᵢ‖²``, float64 ``[n]``."""
        return widen(self._lengths).square_().sum(1)
