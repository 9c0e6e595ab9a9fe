"""Algorithms that build the per-sample gradients of a convolution, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.convolution_costs import NATIVE, PATCHES
from gradscope.contributions.figures import Figures
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.patches_one_by_one import are_large, patches_one_by_one
from gradscope.contributions.products import Reduction, pieces
from gradscope.contributions.workspace import Workspace

#: A single sample's patches are unfolded whole up to this many times the usual room.
WHOLE = 4


def by_patches(
    inputs: Tensor, grads: Tensor, shape: torch.Size, geometry: Geometry, probe: Probe | None,
    *, moments: bool = False, workspace: Workspace | None = None,
) -> Figures:  # fmt: skip
    """Each sample's gradient as one product of patches and output gradients, a few samples at a time.

    Args:
        inputs: padded input.
        grads: gradient of the output.
        shape: the parameter's.
        geometry: how the kernel walks.
        probe: random directions, or None; not seen where gradients are large, since their factors are read faster.
        moments: whether the elementwise second moment is wanted.
        workspace: algorithms and scratch memory.
    """
    workspace, groups = workspace or Workspace(), geometry.groups
    if are_large(inputs, grads, geometry, workspace):
        built = patches_one_by_one(inputs, grads, geometry, workspace, summed=False, moments=moments, probe=probe)
        second = None if built.second_moment is None else built.second_moment.view(shape)
        return Figures(built.squares, built.probes, second, PATCHES)
    positions = tuple(grads.shape[2:])
    patch, out = inputs.shape[1] // groups * prod(geometry.kernel), grads.shape[1] // groups
    transposed = groups == 1 and patch > out
    size = (groups, patch, out) if transposed else (groups, out, patch)
    reduction = Reduction(inputs.shape[0], size, probe, inputs, moments=moments, transposed=transposed)
    width = prod(positions[1:])
    row = inputs.shape[1] * prod(geometry.kernel) * width
    step = pieces(inputs.shape[0], workspace.room(row * positions[0], inputs, 2))
    for i in range(0, inputs.shape[0], step):
        back = grads[i : i + step].flatten(2).unflatten(1, (groups, -1)).flatten(0, 1)
        product: Tensor | None = None
        for first, band in _bands(positions, row, inputs, workspace):
            patches = geometry.unfold(inputs[i : i + step], first, band, workspace.buffer)
            own = back[:, :, first * width : (first + band[0]) * width]
            left, right = (patches, own.mT) if transposed else (own, patches.mT)
            if band == positions:
                reduction.multiply(left, right, i, workspace)
            elif product is None:
                product = torch.bmm(left, right)
            else:
                product.baddbmm_(left, right)
        if product is not None:
            reduction.take(product, i)
    return reduction.figures(shape, PATCHES)


def _bands(
    positions: tuple[int, ...], row: int, like: Tensor, workspace: Workspace
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Where each band of positions begins along the first dimension, and its size; one band unless a sample is very large."""
    most = max(1, WHOLE * workspace.room(row, like))
    step = positions[0] if positions[0] <= most else most
    for first in range(0, positions[0], step):
        yield first, (min(step, positions[0] - first), *positions[1:])


def by_native(
    inputs: Tensor, grads: Tensor, shape: torch.Size, geometry: Geometry, probe: Probe | None, *, moments: bool = False
) -> Figures:
    """Each sample's gradient by torch's own backward of the convolution.

    One sample at a time; where each channel is a group of its own, the channels of all samples are groups of one convolution.
    """
    n, groups = inputs.shape[0], geometry.groups
    size = (groups, shape[0] // groups, shape.numel() // shape[0])
    reduction = Reduction(n, size, probe, inputs, moments=moments)
    step = n if depthwise(shape, geometry) else 1
    many = replace(geometry, groups=step * groups)
    for i in range(0, n, step):
        x, back = (factor[i : i + step].flatten(0, 1).unsqueeze(0) for factor in (inputs, grads))
        found = native_gradient(x, back, torch.Size((step * shape[0], *shape[1:])), many)
        reduction.take(found.reshape(step * groups, *size[1:]), i)
    return reduction.figures(shape, NATIVE)


def depthwise(shape: torch.Size, geometry: Geometry) -> bool:
    """Whether each channel is a group of its own: then a sample's gradient is much smaller than what it was read from."""
    return shape[1] == 1 and shape[0] == geometry.groups


def native_gradient(inputs: Tensor, grads: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """``Σᵢ hᵢ`` of the given samples by torch's own backward of the convolution, of the parameter's shape."""
    none = [0] * len(geometry.kernel)
    found: Tensor = torch.ops.aten.convolution_backward(
        grads, inputs, inputs.new_empty(shape), None, geometry.stride, geometry.zeros, geometry.dilation, False, none,
        geometry.groups, [False, True, False],
    )[1]  # fmt: skip
    return found


def filtered_probe(inputs: Tensor, grads: Tensor, shape: torch.Size, geometry: Geometry, probe: Probe) -> Tensor:
    """``⟨hᵢ, Rⱼ⟩``, ``[n, k]``: the right factor by one native convolution with k random filters, so that nothing is unfolded."""
    n, groups, k = inputs.shape[0], geometry.groups, probe.right.shape[0]
    kernels = probe.right.reshape(k, *shape[1:]).repeat(groups, *[1] * (len(shape) - 1))
    none, zeros = [0] * len(geometry.kernel), geometry.zeros
    right = torch.convolution(inputs, kernels, None, geometry.stride, zeros, geometry.dilation, False, none, groups)
    left = probe.left.reshape(k, groups, -1).transpose(0, 1)
    apart = grads.reshape(n, groups, grads.shape[1] // groups, -1)
    return torch.matmul(left, apart).mul_(right.reshape(n, groups, k, -1)).sum((1, 3))
