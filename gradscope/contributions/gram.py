"""Squared norms from Gram matrices of positions, of which one triangle is enough."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradscope.contributions.workspace import Workspace

#: A Gram sum this small beside what it would be without cancellation has lost its digits in that dtype.
CANCELLED = {torch.float32: 1e-3, torch.complex64: 1e-3, torch.float64: 1e-11, torch.complex128: 1e-11}

#: From this many positions on the triangle is cut into so many strips; more strips save more products and cost more calls.
STRIPS = ((128, 4), (48, 2))


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


def halved(first: Tensor, second: Tensor, count: int, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """``Σ_{s,t} ⟨aₛ, aₜ⟩⟨bₛ, bₜ⟩`` of ``[N, T, d]`` and ``[N, T, p]``, and where it has lost its digits, as in ``triangle``.

    Halves of the positions meet each other once; what is left on the diagonal is halved again. Everything of one size is one
    call: for 128 positions six products, where strips have eight.
    """
    many, positions = first.shape[:2]
    total: Tensor | None = None
    for level in range(count):
        blocks, size = 1 << level, positions >> (level + 1)
        pair = (part.reshape(many * blocks, 2 * size, -1) for part in (first, second))
        met = products(*((part[:, size:], part[:, :size].mH) for part in pair), workspace)
        part = met.reshape(many, -1).sum(1).double()
        total = part if total is None else total.add_(part)
    size = positions >> count
    own = products(*((part, part.mH) for part in (one.reshape(-1, size, one.shape[2]) for one in (first, second))), workspace)
    part = own.reshape(many, -1).sum(1).double()
    total = part if total is None else total.mul_(2).add_(part)
    # Rounding may leave a diagonal that should be zero just below it.
    uncancelled = own.diagonal(dim1=1, dim2=2).abs().sqrt_().reshape(many, -1).sum(1)
    return total, ~(total > uncancelled.double().square_().mul_(CANCELLED[own.dtype]))


def products(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], workspace: Workspace) -> Tensor:
    """``⟨aₛ, aₜ⟩⟨bₛ, bₜ⟩``, in memory that the next call may write again."""
    shape = (first[0].shape[0], first[0].shape[1], first[1].shape[2])
    left, right = (workspace.buffer(slot, shape, first[0]) for slot in ("first Gram", "second Gram"))
    torch.bmm(*first, out=left)
    torch.bmm(*second, out=right)
    return left.mul_(right).real if left.is_complex() else left.mul_(right)
