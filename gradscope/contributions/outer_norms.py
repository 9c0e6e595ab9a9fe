"""Algorithms for sums of outer products, all exact; a cost model chooses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradscope.contributions.precision import row_squares

#: Elements of a product that is built at once: small enough to be reduced while it is in cache.
CHUNK = 1 << 20

#: A Gram sum this small beside what it would be without cancellation has lost its digits in that dtype.
CANCELLED = {torch.float32: 1e-3, torch.complex64: 1e-3, torch.float64: 1e-11, torch.complex128: 1e-11}


def outer_squared_norms(inputs: Tensor, grads: Tensor) -> Tensor:
    """``‖Σₜ grads[i, t]ᵀ inputs[i, t]‖²`` over all groups, float64 ``[n]``.

    Args:
        inputs: ``[n, groups, T, d]``.
        grads: ``[n, groups, T, p]``.
    """
    positions, d, p = inputs.shape[2], inputs.shape[3], grads.shape[3]
    if positions == 1:
        return by_vectors(inputs, grads)
    if positions * (d + p) < d * p:
        return by_gram(inputs, grads)
    return by_products(inputs, grads)


def by_vectors(inputs: Tensor, grads: Tensor) -> Tensor:
    """``Σ_g ‖a‖²‖b‖²``: with a single position the norm of an outer product is the product of the norms."""
    n, groups = inputs.shape[:2]
    squares = row_squares(inputs.reshape(n * groups, -1)) * row_squares(grads.reshape(n * groups, -1))
    return squares.reshape(n, groups).sum(1)


def by_gram(inputs: Tensor, grads: Tensor) -> Tensor:
    """``Σ_{s,t} ⟨aₛ, aₜ⟩⟨bₛ, bₜ⟩``; samples whose positions cancel are computed again from their product."""
    squares, lost = gram_product((inputs @ inputs.mH).flatten(0, 1), (grads @ grads.mH).flatten(0, 1))
    groups = inputs.shape[1]
    squares, lost = squares.reshape(-1, groups).sum(1), lost.reshape(-1, groups).any(1)
    if bool(lost.any()):
        index = lost.nonzero()[:, 0]
        squares[index] = by_products(inputs[index], grads[index])
    return squares


def gram_product(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ_{s,t} first[s, t]·second[s, t]`` of Gram matrices ``[N, T, T]``, and where it has lost its digits.

    In float32 cancellation makes Gram sums wrong by 10–40 ×, so each sum is compared with its uncancelled size
    ``(Σₜ ‖aₜ‖‖bₜ‖)²``, which the diagonals hold.

    Returns:
        The sums, float64 ``[N]``, and a mask of those that cannot be trusted.
    """
    count, positions = first.shape[0], first.shape[1]
    flat = positions * positions
    if first.is_complex():
        squares = (first * second).real.double().sum((1, 2))
    else:
        squares = torch.bmm(first.reshape(count, 1, flat), second.reshape(count, flat, 1)).reshape(count).double()
    diagonals = first.diagonal(dim1=1, dim2=2).abs() * second.diagonal(dim1=1, dim2=2).abs()
    uncancelled = diagonals.sqrt().sum(1).double().square()
    return squares, ~(squares > CANCELLED[first.dtype] * uncancelled)


def by_products(inputs: Tensor, grads: Tensor) -> Tensor:
    """Each sample's gradient built, squared and dropped, a few samples at a time."""
    return torch.cat([row_squares(product) for product in products(inputs, grads)])


def outer_second_moment(inputs: Tensor, grads: Tensor) -> Tensor:
    """``Σᵢ |hᵢ|²`` elementwise, ``[groups·p, d]``."""
    if inputs.shape[2] == 1:
        squares = torch.einsum("ngp,ngd->gpd", grads[:, :, 0].abs().square(), inputs[:, :, 0].abs().square())
        return squares.flatten(0, 1)
    total: Tensor | None = None
    for product in products(inputs, grads):
        squares = product.abs().square_().sum(0)
        total = squares if total is None else total.add_(squares)
    if total is None:
        return inputs.new_zeros(grads.shape[1] * grads.shape[3], inputs.shape[3])
    return total.flatten(0, 1)


def products(inputs: Tensor, grads: Tensor) -> Iterator[Tensor]:
    """The samples' gradients ``[chunk, groups, p, d]``; only one chunk's exist at a time."""
    each = max(1, inputs.shape[1] * inputs.shape[3] * grads.shape[3])
    chunk = max(1, CHUNK // each)
    for start in range(0, inputs.shape[0], chunk):
        part = slice(start, start + chunk)
        yield grads[part].transpose(2, 3) @ inputs[part]
