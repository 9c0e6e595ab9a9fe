"""Squared norms from Gram matrices of positions, of which one triangle is enough."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: A Gram sum this small beside what it would be without cancellation has lost its digits in that dtype.
CANCELLED = {torch.float32: 1e-3, torch.complex64: 1e-3, torch.float64: 1e-11, torch.complex128: 1e-11}

#: From this many positions on the triangle is cut into so many strips; more strips save more products and cost more calls.
STRIPS = ((128, 4), (48, 2))


#: Elements of Gram blocks that are kept for other weights.
KEPT = 1 << 20


class SharedBlocks:
    """Gram blocks of a factor that several weights have in common: computed for the first, read by the others."""

    __slots__ = ("_blocks", "_room")

    def __init__(self) -> None:
        self._blocks: dict[tuple[int, int], Tensor] = {}
        self._room = KEPT

    def find(self, place: tuple[int, int]) -> Tensor | None:
        """The block at this place, by its first sample and first row; None where it is not kept."""
        return self._blocks.get(place)

    def keep(self, place: tuple[int, int], block: Tensor) -> None:
        """Keep a copy, while there is room."""
        if block.numel() <= self._room:
            self._room -= block.numel()
            self._blocks[place] = block.clone()


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
        part = own.sum((1, 2)).double()
        if low:
            part.add_(products[:, :, :low].sum((1, 2)), alpha=2)
        # Rounding may leave a diagonal that should be zero just below it.
        root = own.diagonal(dim1=1, dim2=2).abs().sqrt_().sum(1)
        total = part if total is None else total.add_(part)
        uncancelled = root if uncancelled is None else uncancelled.add_(root)
    if total is None or uncancelled is None:
        raise ValueError("a triangle has at least one strip")
    return total, ~(total > uncancelled.double().square_().mul_(CANCELLED[dtype]))
