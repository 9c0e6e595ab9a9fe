"""Algorithms for sums of outer products, all exact; a cost model chooses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.contributions import compiled
from gradscope.contributions.contribution import Probe
from gradscope.contributions.costs import rates
from gradscope.contributions.figures import Figures
from gradscope.contributions.gram import Blocks, SharedBlocks, halved, halved_share, halvings, share, strips, triangle
from gradscope.contributions.one_by_one import LARGE, OneByOne
from gradscope.contributions.precision import BLOCK, row_squares
from gradscope.contributions.products import FEW, Reduction, pieces, turned
from gradscope.contributions.workspace import Workspace
from gradscope.wide import widen

GRAM, PRODUCTS = "Gram", "products"


#: Positions at which a product of Gram matrices takes twice as long on a CPU as the number of its multiply-adds tells.
SMALL = 32


def costs(inputs: Tensor, grads: Tensor, workspace: Workspace, *, moments: bool = False) -> dict[str, float]:
    """Nanoseconds of each algorithm for ``inputs`` ``[n, groups, T, d]`` and ``grads`` ``[n, groups, T, p]``.

    Args:
        inputs: the one factor.
        grads: the other.
        workspace: its room decides how many calls there are.
        moments: whether the elementwise second moment is wanted, which needs the gradients themselves.
    """
    n, groups, positions, d = inputs.shape
    p, rate = grads.shape[3], rates(inputs)
    many = n * groups
    square, weight = positions * positions, d * p
    count = strips(positions)
    part = min(share(count), halved_share(halvings(positions)))
    gram = square * part * ((d + p) * rate.multiply + 2 * rate.reduce)
    if inputs.is_cpu:
        # Small matrices are multiplied more slowly.
        gram *= 1 + SMALL / positions
    product = weight * (positions * rate.multiply + rate.reduce)
    gram_chunks = -(-n // workspace.room(groups * square, inputs))
    product_chunks = -(-n // workspace.room(groups * weight, inputs, 2))
    found = {PRODUCTS: many * product + 6 * rate.call * product_chunks}
    found.update(compiled.costs(inputs, grads, workspace, moments=moments))
    if not moments and workspace.allows(groups * square, inputs):
        found[GRAM] = many * gram + 8 * rate.call * count * gram_chunks
    return found


def by_vectors(inputs: Tensor, grads: Tensor) -> Tensor:
    """``Σ_g ‖a‖²‖b‖²``: with a single position the norm of an outer product is the product of the norms."""
    n, groups, _, d = inputs.shape
    p = grads.shape[3]
    if groups == 1 and max(d, p) <= BLOCK:
        norms: Tensor = widen(torch.linalg.vector_norm(inputs.reshape(n, d), dim=1))
        return norms.mul_(torch.linalg.vector_norm(grads.reshape(n, p), dim=1)).square_()
    squares = row_squares(inputs.reshape(n * groups, -1)) * row_squares(grads.reshape(n * groups, -1))
    return squares.reshape(n, groups).sum(1)


def by_gram(
    inputs: Tensor, grads: Tensor, workspace: Workspace | None = None,
    shared: Sequence[SharedBlocks | None] = (None, None),
) -> Tensor:  # fmt: skip
    """``Σ_{s,t} ⟨aₛ, aₜ⟩⟨bₛ, bₜ⟩``; samples whose positions cancel are computed again from their product.

    Args:
        inputs: ``[n, groups, T, d]``.
        grads: ``[n, groups, T, p]``.
        workspace: scratch memory.
        shared: Gram blocks of ``inputs`` and of ``grads``, where other weights have the same.
    """
    workspace = workspace or Workspace()
    n, groups, positions = inputs.shape[:3]
    step = pieces(n, workspace.room(groups * positions * positions, inputs))
    parts = [_gram(inputs[i : i + step], grads[i : i + step], workspace, shared, i) for i in range(0, n, step)]
    squares, lost = parts[0] if len(parts) == 1 else (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if bool(lost.any()):
        index = lost.nonzero()[:, 0]
        squares[index] = by_products(inputs[index], grads[index], None, workspace=workspace).squares
    return squares


def _gram(
    inputs: Tensor, grads: Tensor, workspace: Workspace, shared: Sequence[SharedBlocks | None], start: int
) -> tuple[Tensor, Tensor]:
    n, groups, positions = inputs.shape[:3]
    first, second = inputs.flatten(0, 1), grads.flatten(0, 1)
    count, cut = halvings(positions), strips(positions)
    blocks = Blocks(workspace, shared, start)
    if halved_share(count) <= share(cut):
        squares, lost = halved(first, second, count, blocks)
    else:

        def block(low: int, high: int) -> Tensor:
            rows = ((part[:, low:high], part[:, :high].mH) for part in (first, second))
            return blocks.products(*rows, place=low)

        squares, lost = triangle(block, positions, cut)
    if groups == 1:
        return squares, lost
    return squares.reshape(n, groups).sum(1), lost.reshape(n, groups).any(1)


def large(inputs: Tensor, grads: Tensor) -> bool:
    """Whether one product at a time is fastest."""
    _, groups, positions, d = inputs.shape
    return groups == 1 and inputs.is_cpu and not inputs.is_complex() and positions * d * grads.shape[3] >= LARGE


def by_products(
    inputs: Tensor, grads: Tensor, probe: Probe | None, *, moments: bool = False, workspace: Workspace | None = None
) -> Figures:
    """Each sample's gradient built, reduced and dropped, a few samples at a time; the moment as ``[groups, p, d]``.

    Probes only where products are small: otherwise the factors answer sooner.
    """
    workspace = workspace or Workspace()
    n, groups, positions, d = inputs.shape
    p = grads.shape[3]
    # More rows than columns are up to 1.8 × as fast as the reverse on two threads.
    transposed = groups == 1 and d > p
    first, second = (inputs, grads) if transposed else (grads, inputs)
    size = (groups, first.shape[3], second.shape[3])
    if large(inputs, grads):
        built = OneByOne(
            n, (size[1], size[2]), inputs, summed=False, moments=moments, memory=workspace, turned=transposed,
            alone=True,
        )  # fmt: skip
        built.take(first[:, 0].mT, second[:, 0], 0, workspace)
        moment = built.second_moment
        if moment is not None:
            moment = (turned(moment, workspace) if transposed else moment).unsqueeze(0)
        return Figures(built.squares(), None, moment, PRODUCTS)
    reduction = Reduction(n, size, probe, inputs, moments=moments, transposed=transposed)
    # At least two at once, so that two threads have a product each.
    room = workspace.room(groups * d * p, inputs, 2)
    if room < FEW:
        # Gradients this large are built in bands of rows, for as many samples as their factors allow.
        room = workspace.room(groups * positions * (d + p), inputs, 2)
    step = pieces(n, room)
    for i in range(0, n, step):
        left, right = first[i : i + step].flatten(0, 1), second[i : i + step].flatten(0, 1)
        reduction.multiply(left.mT, right, i, workspace)
    return reduction.figures(torch.Size((groups, p, d)), PRODUCTS)


def by_squares(inputs: Tensor, grads: Tensor, into: Tensor | None = None) -> Tensor:
    """``Σᵢ |hᵢ|²`` elementwise, ``[groups, p, d]``, where there is a single position; in the memory given."""
    first, second = ((part.abs() if part.is_complex() else part).square() for part in (grads[:, :, 0], inputs[:, :, 0]))
    if first.shape[1] == 1:
        return torch.mm(first[:, 0].T, second[:, 0], out=into).unsqueeze(0)
    return torch.bmm(first.permute(1, 2, 0), second.transpose(0, 1))
