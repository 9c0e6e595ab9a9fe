"""Squared norms from Gram matrices of positions, of which one triangle is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from gradscope.contributions.workspace import Workspace
from gradscope.wide import widen

#: A Gram sum this small beside what it would be without cancellation has lost its digits in that dtype.
CANCELLED = {torch.float32: 1e-3, torch.complex64: 1e-3, torch.float64: 1e-11, torch.complex128: 1e-11}

#: From this many positions on the triangle is cut into so many strips; more strips save more products and cost more calls.
STRIPS = ((128, 4), (48, 2))

#: Elements of Gram blocks that are kept for other weights.
KEPT = 1 << 20


class SharedBlocks:
    """Gram blocks of a factor that several weights have in common: computed for the first, read by the others.

    Queries, keys and values read the same input; the weights of a recurrent layer have the same output gradient.
    """

    __slots__ = ("_blocks", "_layout", "_room")

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, int], Tensor] = {}
        self._layout: tuple[object, ...] | None = None
        self._room = KEPT

    def serves(self, factor: Tensor, read: Tensor) -> bool:
        """Whether a factor is nothing but what the layers read, laid out as before; a rule may make something else of it.

        Args:
            factor: a weight's.
            read: what the layers read, held since the forward.
        """
        layout = (factor.data_ptr(), factor.shape, factor.stride(), factor.dtype, factor.is_conj())
        if factor.data_ptr() != read.data_ptr() or factor.numel() != read.numel():
            return False
        self._layout = self._layout or layout
        return self._layout == layout

    def find(self, place: tuple[int, int]) -> Tensor | None:
        """The block at this place, by its first sample and what tells it from others; None where it is not kept."""
        return self._blocks.get(place)

    def has_room(self, size: int) -> bool:
        """Whether a block of so many elements may be kept."""
        return size <= self._room

    def keep(self, place: tuple[int, int], block: Tensor) -> None:
        """A block whose memory is its own."""
        self._room -= block.numel()
        self._blocks[place] = block


class Blocks:
    """Makes the blocks that a triangle is cut into.

    Args:
        workspace: scratch memory.
        shared: blocks of the first and of the second factor, where other weights have the same.
        start: the first of the samples that are worked on.
    """

    __slots__ = ("_shared", "_start", "_workspace")

    def __init__(
        self, workspace: Workspace, shared: Sequence[SharedBlocks | None] = (None, None), start: int = 0
    ) -> None:
        self._workspace = workspace
        self._shared = shared
        self._start = start

    def products(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], *, place: int) -> Tensor:
        """``⟨aₛ, aₜ⟩⟨bₛ, bₜ⟩``, in memory that the next call may write again.

        Args:
            first: rows ``[N, S, d]`` and columns ``[N, d, R]`` of the first factor.
            second: the same of the second.
            place: tells this block from others of the same samples.
        """
        left = self._block(first, "first Gram", self._shared[0], place)
        right = self._block(second, "second Gram", self._shared[1], place)
        met = torch.mul(left, right, out=self._workspace.buffer("first Gram", left.shape, left))
        return met.real if met.is_complex() else met

    def _block(self, factor: tuple[Tensor, Tensor], slot: str, shared: SharedBlocks | None, place: int) -> Tensor:
        rows, columns = factor
        shape = (rows.shape[0], rows.shape[1], columns.shape[2])
        kept = None if self._workspace.budget is not None else shared
        found = None if kept is None else kept.find((self._start, place))
        if found is not None:
            return found
        if kept is None or not kept.has_room(prod(shape)):
            return torch.bmm(rows, columns, out=self._workspace.buffer(slot, shape, rows))
        block = torch.bmm(rows, columns)
        kept.keep((self._start, place), block)
        return block


def strips(positions: int, most: int = 4) -> int:
    """How many strips a triangle of this size is cut into."""
    return next((min(count, most) for least, count in STRIPS if positions >= least), 1)


def share(count: int) -> float:
    """The part of a square that a triangle cut into strips covers."""
    return (count + 1) / (2 * count)


def triangle(block: Callable[[int, int], Tensor], positions: int, count: int) -> tuple[Tensor, Tensor]:
    """``Σ_{s,t} ⟨aₛ, aₜ⟩⟨bₛ, bₜ⟩`` from the rows of one triangle, and where it has lost its digits.

    In float32 cancellation makes Gram sums wrong by 10–40 ×, so each sum is compared with its uncancelled size
    ``(Σₜ ‖aₜ‖‖bₜ‖)²``, which the diagonal holds.

    Args:
        block: the products ``⟨aₛ, aₜ⟩⟨bₛ, bₜ⟩`` ``[N, high - low, high]`` of rows ``low ≤ s < high`` with all ``t < high``; its
            memory may be written again by the next call.
        positions: T.
        count: strips.

    Returns:
        The sums, float64 ``[N]``, and a mask of those that cannot be trusted.
    """
    total: Tensor | None = None
    uncancelled: Tensor | None = None
    dtype = torch.float64
    for strip in range(count):
        low, high = positions * strip // count, positions * (strip + 1) // count
        products = block(low, high)
        dtype = products.dtype
        own = products[:, :, low:]
        part = widen(own.sum((1, 2)))
        if low:
            part.add_(products[:, :, :low].sum((1, 2)), alpha=2)
        # Rounding may leave a diagonal that should be zero just below it.
        root = own.diagonal(dim1=1, dim2=2).abs().sqrt_().sum(1)
        total = part if total is None else total.add_(part)
        uncancelled = root if uncancelled is None else uncancelled.add_(root)
    if total is None or uncancelled is None:
        raise ValueError("a triangle has at least one strip")
    return total, ~(total > widen(uncancelled).square_().mul_(CANCELLED[dtype]))


#: Halves of a triangle are cut until they are this small: smaller products are slow.
HALF = 32


def halvings(positions: int) -> int:
    """How many times a triangle of this size is halved."""
    count = 0
    while positions % 2 == 0 and positions >= 2 * HALF:
        positions //= 2
        count += 1
    return count


def halved_share(count: int) -> float:
    """The part of a square that a triangle covers which was halved so many times."""
    return (1 + 0.5**count) / 2


def halved(first: Tensor, second: Tensor, count: int, made: Blocks) -> tuple[Tensor, Tensor]:
    """``Σ_{s,t} ⟨aₛ, aₜ⟩⟨bₛ, bₜ⟩`` of ``[N, T, d]`` and ``[N, T, p]``, and where it has lost its digits, as in ``triangle``.

    Halves of the positions meet each other once; what is left on the diagonal is halved again. Everything of one size is one
    call: for 128 positions six products, where strips have eight.
    """
    many, positions = first.shape[:2]
    apart: Tensor | None = None
    for level in range(count):
        blocks, size = 1 << level, positions >> (level + 1)
        pair = (part.reshape(many * blocks, 2 * size, part.shape[2]) for part in (first, second))
        met = made.products(*((part[:, size:], part[:, :size].mH) for part in pair), place=-1 - level)
        part = met.reshape(many, -1).sum(1)
        apart = part if apart is None else apart.add_(part)
    size = positions >> count
    rows = (one.reshape(-1, size, one.shape[2]) for one in (first, second))
    own = made.products(*((part, part.mH) for part in rows), place=-1 - count)
    diagonal = own.diagonal(dim1=1, dim2=2)
    # Of complex numbers rounding may leave one just below zero.
    root = (diagonal.abs() if first.is_complex() else diagonal).sqrt().reshape(many, -1).sum(1)
    total = own.reshape(many, -1).sum(1)
    if apart is not None:
        total.add_(apart, alpha=2)
    return widen(total), ~(total > root.square_().mul_(CANCELLED[own.dtype]))
