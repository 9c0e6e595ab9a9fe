"""What the compiled kernels do for convolutions of one or two dimensions, where they can be used."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from gradscope.contributions.compiled import (
    ENDED,
    LAID,
    MULTIPLY,
    PRODUCT_KERNEL,
    Directions,
    Sums,
    fits,
    idle,
    sums_of,
)
from gradscope.contributions.contribution import Probe
from gradscope.contributions.costs import rates
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.gram import CANCELLED
from gradscope.contributions.workspace import Workspace
from gradscope.kernels import Products, ShiftedGram, Walk, depthwise_gradients, serves, width_of
from gradscope.kernels.depthwise import places
from gradscope.kernels.loaded import up
from gradscope.kernels.shifted import sizes

#: As coverage shows it.
SHIFTED_KERNEL, DEPTHWISE_KERNEL = "shifted Gram kernel", "depthwise kernel"

#: Adding an element of a shifted block, in multiply-adds.
SHIFTED = 1.5


#: Filters that read one channel: nanoseconds of one, of an offset of its kernel, of a multiply-add there, of laying out a number.
FILTER, OFFSET, LINE, PLACED = 60.0, 6.5, 0.036, 0.3


def walk_of(geometry: Geometry) -> Walk | None:
    """The same walk in two dimensions; None where there are more, or groups."""
    return _in_two(geometry) if geometry.groups == 1 else None


def _in_two(geometry: Geometry) -> Walk | None:
    if len(geometry.kernel) > 2:
        return None
    if len(geometry.kernel) == 2:
        return Walk(geometry.kernel, geometry.stride, geometry.dilation, geometry.zeros)  # type: ignore[arg-type]
    return Walk((1, *geometry.kernel), (1, *geometry.stride), (1, *geometry.dilation), (0, *geometry.zeros))  # type: ignore[arg-type]


def convolution_kernel(
    inputs: Tensor, grads: Tensor, geometry: Geometry, workspace: Workspace, count: int | None = None
) -> Products | None:
    """The kernel for a convolution's gradients; None where it cannot be used.

    Args:
        inputs: ``[n, channels, *spatial]``, with the geometry's padding still to come.
        grads: gradient of the output ``[n, channels_out, *positions]``.
        geometry: how the kernel walks.
        workspace: its budget decides.
        count: of how many samples; all by default.
    """
    walk = walk_of(geometry) if serves(inputs, grads) else None
    if walk is None:
        return None
    first, second = _images(inputs, grads)
    if walk.kernel == (1, 1) and walk.padding == (0, 0):
        # Pixels that no position reads are left out.
        first, walk = first[:, :, :: walk.stride[0], :: walk.stride[1]], walk._replace(stride=(1, 1))
    kernel = Products(first, second, walk, count)
    return kernel if fits(kernel, inputs, workspace) else None


def shifted_kernel(
    inputs: Tensor, grads: Tensor, geometry: Geometry, workspace: Workspace, count: int | None = None
) -> ShiftedGram | None:
    """The kernel for norms from Gram matrices of pixels; None where it cannot be used. Arguments as before."""
    walk = walk_of(geometry) if serves(inputs, grads) else None
    if walk is None:
        return None
    kernel = ShiftedGram(*_images(inputs, grads), walk, count)
    return kernel if fits(kernel, inputs, workspace) else None


def _images(inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
    return (inputs, grads) if inputs.dim() == 4 else (inputs.unsqueeze(2), grads.unsqueeze(2))


def depthwise_rows(inputs: Tensor, grads: Tensor, geometry: Geometry) -> Tensor | None:
    """Each sample's gradient of filters that read one channel each, ``[n, filters, ∏kernel]``; None where no kernel can."""
    walk = _in_two(geometry) if 1 < geometry.groups == inputs.shape[1] and serves(inputs, grads) else None
    return None if walk is None else depthwise_gradients(*_images(inputs, grads), walk)


def costs(
    inputs: Tensor, grads: Tensor, geometry: Geometry, workspace: Workspace, *, moments: bool
) -> dict[str, float]:
    """Nanoseconds of each kernel that can be used for a convolution; the input may hold its padding or not.

    Args:
        inputs: ``[n, channels, *spatial]``.
        grads: gradient of the output ``[n, channels_out, *positions]``.
        geometry: how the kernel walks.
        workspace: its budget decides.
        moments: whether the elementwise second moment is wanted, which needs the gradients themselves.
    """
    found: dict[str, float] = {}
    if not serves(inputs, grads):
        return found
    (n, channels), width, call = inputs.shape[:2], width_of(inputs.dtype), 2 * rates(inputs).call
    positions, out, area = prod(grads.shape[2:]), grads.shape[1], prod(geometry.kernel)
    products = convolution_kernel(inputs, grads, geometry, workspace)
    if products is not None:
        columns = up(channels, width) * area if 3 * channels >= 2 * width else up(channels * area, width)
        found[PRODUCT_KERNEL] = n * (1.1 * positions + ENDED) * columns * out * MULTIPLY * idle(products) + call
    walk, shifted = walk_of(geometry), shifted_kernel(inputs, grads, geometry, workspace)
    if not moments and walk is not None and shifted is not None:
        x, g = _images(inputs, grads)
        across, padded, phases = sizes(x.shape, g.shape, walk, width)
        each = phases * across * (across + width) / 2 * channels + padded * (padded + width) / 2 * out
        each += LAID * (phases * across * channels + padded * out) + SHIFTED * area * padded * padded / 2
        found[SHIFTED_KERNEL] = n * each * MULTIPLY * idle(shifted) + call
    alone = _in_two(geometry) if 1 < geometry.groups == channels else None
    if alone is not None and workspace.allows(out * area, inputs):
        x, g = _images(inputs, grads)
        each = FILTER + area * (OFFSET + places(x.shape, g.shape, alone) * LINE)
        found[DEPTHWISE_KERNEL] = n * out * (each + (prod(x.shape[2:]) + positions) * PLACED) + call
    return found


def convolution_sums(
    kernel: Products, like: Tensor, shape: torch.Size, workspace: Workspace, *, summed: bool = False, moments: bool = False,
    directions: Directions | None = None, chosen: Tensor | None = None,
) -> Sums:  # fmt: skip
    """Each sample's gradient of a convolution's weight, built once.

    Args:
        kernel: what builds them.
        like: a tensor of their dtype.
        shape: the parameter's.
        workspace: scratch memory, and that of the second moment.
        summed: whether the gradients' sum is wanted.
        moments: whether the elementwise second moment is wanted.
        directions: along which the gradients are looked at, or None.
        chosen: the samples that are meant, as many as the kernel is made for; all by default.
    """
    return sums_of(kernel, shape, like, workspace, summed, moments, directions, chosen=chosen)


def looked(inputs: Tensor, grads: Tensor, geometry: Geometry, probe: Probe) -> Tensor | None:
    """``leftⱼᵀ hᵢ rightⱼ``, float64 ``[n, k]``, from one look at each factor a direction; None where the kernel cannot.

    Args:
        inputs: ``[n, channels, *spatial]``, with the geometry's padding still to come.
        grads: gradient of the output ``[n, channels_out, *positions]``.
        geometry: how the kernel walks.
        probe: random directions.
    """
    walk = walk_of(geometry) if serves(inputs, grads) else None
    if walk is None:
        return None
    kernel = ShiftedGram(*_images(inputs, grads), walk)
    found = [kernel.look(left, right) for left, right in zip(probe.lefts, probe.rights, strict=True)]
    return torch.stack(found, dim=1)


def shifted_squares(
    kernel: ShiftedGram, like: Tensor, workspace: Workspace, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``‖hᵢ‖²`` without any gradient, float64 ``[n]``, and where their digits were lost to cancellation.

    Args:
        kernel: what adds them up.
        like: a tensor of the factors' dtype.
        workspace: scratch memory.
        chosen: the samples that are meant, as many as the kernel is made for; all by default.
    """
    squares, uncancelled = kernel.run(workspace.buffer("kernel", (kernel.scratch,), like), chosen)
    return squares, ~(squares > uncancelled.mul_(CANCELLED[like.dtype]))
