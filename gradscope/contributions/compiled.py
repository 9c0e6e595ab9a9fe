"""What the compiled kernels do for outer products, where they can be used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.contributions.costs import rates
from gradscope.contributions.gram import CANCELLED
from gradscope.contributions.outer_bias import OuterBias
from gradscope.contributions.workspace import Workspace
from gradscope.kernels import Gram, Products, ShiftedGram, serves, width_of
from gradscope.kernels.gram import MOST

#: As coverage shows them.
GRAM_KERNEL, PRODUCT_KERNEL = "Gram kernel", "product kernel"

#: Nanoseconds of a multiply-add inside a kernel, beside the rates of torch's algorithms: these take up to twice what is reckoned.
MULTIPLY = 0.0115

#: Reading an element and laying it where a kernel wants it, and a tile's end, in multiply-adds.
LAID, ENDED = 15.0, 4.0

#: Rows from which on there are enough for all threads.
NARROW = 64


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What one pass over the samples' gradients gives.

    Attributes:
        squares: ``‖hᵢ‖²``, float64 ``[n]``.
        total: ``Σᵢ hᵢ`` in memory of its own, of the parameter's shape; None where nobody asked.
        second_moment: ``Σᵢ hᵢ²`` elementwise, in memory that is lent; likewise.
        probes: ``leftᵀ hᵢ right``, float64 ``[n, 1]``; likewise.
    """

    squares: Tensor
    total: Tensor | None = None
    second_moment: Tensor | None = None
    probes: Tensor | None = None


#: A left and a right direction.
Directions = tuple[Tensor, Tensor]


def kernels_for(inputs: Tensor, grads: Tensor) -> bool:
    """Whether kernels can read the factors of outer products ``[n, groups, T, ·]``; one group only."""
    return inputs.shape[1] == 1 and serves(inputs, grads)


def costs(inputs: Tensor, grads: Tensor, workspace: Workspace, *, moments: bool) -> dict[str, float]:
    """Nanoseconds of each kernel that can be used for ``inputs`` ``[n, groups, T, d]`` and ``grads`` ``[n, groups, T, p]``.

    Args:
        inputs: the one factor.
        grads: the other.
        workspace: its budget decides.
        moments: whether the elementwise second moment is wanted, which needs the gradients themselves.
    """
    if not kernels_for(inputs, grads):
        return {}
    (n, _, positions, d), p, rate = inputs.shape, grads.shape[3], rates(inputs)
    width = width_of(inputs.dtype)
    found = {}
    products, gram = _products(inputs, grads, turned=not moments)[0], Gram(inputs[:, 0], grads[:, 0])
    if fits(products, inputs, workspace):
        each = (1.1 * positions + ENDED) * -(-d // width) * width * p
        found[PRODUCT_KERNEL] = n * each * MULTIPLY * idle(products) + 2 * rate.call
    if not moments and fits(gram, inputs, workspace):
        padded = -(-positions // width) * width
        each = (padded + width) / 2 * padded * (d + p) + LAID * padded * (d + p)
        found[GRAM_KERNEL] = n * each * MULTIPLY * idle(gram) + 2 * rate.call
    return found


def idle(kernel: Products | Gram | ShiftedGram) -> float:
    """How much longer a kernel takes than with all threads: torch's algorithms, beside which it is reckoned, use them all."""
    return torch.get_num_threads() / kernel.threads


def builds(inputs: Tensor, grads: Tensor, workspace: Workspace) -> bool:
    """Whether the kernel can build these outer products' gradients as they lie, ``[p, d]``."""
    return kernels_for(inputs, grads) and fits(_products(inputs, grads, turned=False)[0], inputs, workspace)


def fits(kernel: Products | Gram | ShiftedGram, like: Tensor, workspace: Workspace) -> bool:
    """Whether a kernel's scratch memory is within the budget, and of a size that caches hold."""
    return kernel.scratch <= MOST and workspace.allows(kernel.scratch, like)


def _products(inputs: Tensor, grads: Tensor, *, turned: bool, chosen: Tensor | None = None) -> tuple[Products, bool]:
    """The kernel, and whether its gradients are ``[d, p]``: threads share rows, of which there should be many."""
    first, second = inputs[:, 0], grads[:, 0]
    turned = turned and grads.shape[3] < NARROW and inputs.shape[3] > grads.shape[3]
    count = None if chosen is None else chosen.numel()
    return Products(*((second, first) if turned else (first, second)), count=count), turned


def outer_sums(
    inputs: Tensor, grads: Tensor, shape: torch.Size, workspace: Workspace, *, summed: bool = False, moments: bool = False,
    directions: Directions | None = None, bias: OuterBias | None = None, chosen: Tensor | None = None,
) -> Sums:  # fmt: skip
    """Each sample's gradient built once, tile by tile.

    Where their sum is wanted, projections come from the factors, so that they check it.

    Args:
        inputs: ``[n, 1, T, d]``.
        grads: ``[n, 1, T, p]``.
        shape: the parameter's.
        workspace: scratch memory, and that of the second moment.
        summed: whether the gradients' sum is wanted.
        moments: whether the elementwise second moment is wanted.
        directions: along which the gradients are looked at, or None.
        bias: whose values are found on the way, or None.
        chosen: the samples that are meant; all by default.
    """
    kernel, turned = _products(inputs, grads, turned=not (summed or moments), chosen=chosen)
    if turned:
        directions, bias = None if directions is None else directions[::-1], None
    return sums_of(kernel, shape, inputs, workspace, summed, moments, directions, bias, factors=summed, chosen=chosen)


def sums_of(
    kernel: Products, shape: torch.Size, like: Tensor, workspace: Workspace, summed: bool, moments: bool,
    directions: Directions | None = None, bias: OuterBias | None = None, *, factors: bool = False,
    chosen: Tensor | None = None,
) -> Sums:  # fmt: skip
    """What a kernel gives; arguments as for ``outer_sums``, and whether projections come from the factors."""
    total = like.new_empty(shape) if summed else None
    second = workspace.lend(shape, like) if moments else None
    values = None if bias is None else bias.memory()
    scratch = workspace.buffer("kernel", (kernel.scratch,), like)
    squares, probes = kernel.run(
        scratch, total=total, moment=second, directions=directions, factors=factors, sums=values, chosen=chosen
    )
    if bias is not None and values is not None:
        bias.found(values)
    return Sums(squares, total, second, None if probes is None else probes.unsqueeze(1))


def looked(inputs: Tensor, grads: Tensor, directions: Directions, bias: OuterBias | None) -> Tensor | None:
    """``leftᵀ hᵢ right``, float64 ``[n, 1]``, from one look at each factor; None where the kernel cannot.

    Args:
        inputs: ``[n, 1, T, d]``.
        grads: ``[n, 1, T, p]``.
        directions: left and right.
        bias: whose values are found on the way, or None.
    """
    if not kernels_for(inputs, grads):
        return None
    values = None if bias is None else bias.memory()
    found = Gram(inputs[:, 0], grads[:, 0]).look(directions, values)
    if bias is not None and values is not None:
        bias.found(values)
    return found.unsqueeze(1)


def gram_sums(
    inputs: Tensor, grads: Tensor, workspace: Workspace,
    directions: Directions | None = None, bias: OuterBias | None = None, chosen: Tensor | None = None,
) -> Sums:  # fmt: skip
    """``‖hᵢ‖²`` without any gradient; samples whose positions cancel are computed again from theirs.

    Args:
        inputs: ``[n, 1, T, d]``.
        grads: ``[n, 1, T, p]``.
        workspace: scratch memory.
        directions: along which the gradients are looked at, or None.
        bias: whose values are found on the way if there are directions, or None.
        chosen: the samples whose norms are meant, the others' are NaN; all by default.
    """
    kernel = Gram(inputs[:, 0], grads[:, 0], None if chosen is None else chosen.numel())
    values = None if bias is None or directions is None else bias.memory()
    scratch = workspace.buffer("kernel", (kernel.scratch,), inputs)
    least = CANCELLED[inputs.dtype]
    found, lost = kernel.run(scratch, directions=directions, sums=values, chosen=chosen, least=least)
    if bias is not None and values is not None:
        bias.found(values)
    squares, uncancelled, probes = found.unbind()
    if lost:
        cancelled = ~(squares > least * uncancelled)
        index = cancelled.nonzero()[:, 0] if chosen is None else chosen[cancelled[chosen]]
        again, _ = _products(inputs, grads, turned=True, chosen=index)
        squares[index] = again.run(inputs.new_empty(again.scratch), chosen=index)[0]
    return Sums(squares, probes=None if directions is None else probes.unsqueeze(1))
