"""One pass over the samples' gradients of a convolution."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.fused_sums import FusedSums, sums_of_chunks, sums_of_products
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.patches_one_by_one import are_large, patches_one_by_one
from gradscope.contributions.workspace import Workspace

#: The native backward is the faster from so many positions and input channels on: below, its calls cost more than they do, or
#: its registers stay empty.
POSITIONS, CHANNELS = 512, 8

#: Samples whose native backward is one call.
MOST = 16


def sums_of_convolutions(
    inputs: Tensor, grads: Tensor, shape: torch.Size, geometry: Geometry, workspace: Workspace, *,
    moments: bool, probe: Probe | None = None,
) -> FusedSums:  # fmt: skip
    """Sums over samples of a convolution's weight gradients, each built once.

    Args:
        inputs: ``[n, channels, *spatial]``, padded unless samples are ``grouped``.
        grads: gradient of the output ``[n, channels_out, *positions]``.
        shape: the parameter's.
        geometry: how the kernel walks; one group.
        workspace: scratch memory.
        moments: whether second moments are wanted.
        probe: random directions, or None; answered where patches are at hand.
    """
    if not grouped(inputs, grads):
        return _of_patches(inputs, grads, geometry, workspace, moments=moments, probe=probe).shaped(shape)
    return sums_of_chunks(_grouped(inputs, grads, shape, geometry, workspace), moments=moments)


def grouped(inputs: Tensor, grads: Tensor) -> bool:
    """Whether a native backward in which samples are groups builds the gradients."""
    return prod(grads.shape[2:]) >= POSITIONS and inputs.shape[1] >= CHANNELS


def _of_patches(
    inputs: Tensor, grads: Tensor, geometry: Geometry, workspace: Workspace, *, moments: bool, probe: Probe | None
) -> FusedSums:
    positions = tuple(grads.shape[2:])
    patch = inputs.shape[1] * prod(geometry.kernel)
    if are_large(inputs, grads, geometry, workspace):
        built = patches_one_by_one(inputs, grads, geometry, workspace, summed=True, moments=moments, probe=probe)
        if built.total is not None:
            return FusedSums(built.total, built.squares, built.second_moment, built.probes)
    found: FusedSums | None = None
    chunk = workspace.room(patch * prod(positions), inputs)
    for x, g in zip(inputs.split(chunk), grads.split(chunk), strict=True):
        patches = geometry.unfold(x, 0, positions, workspace.buffer)
        part = sums_of_products(g.flatten(2).mT, patches.mT, workspace, moments=moments)
        found = part if found is None else found.joined(part)
    if found is None:
        raise ValueError("there are no samples to add up")
    return found


def _grouped(
    inputs: Tensor, grads: Tensor, shape: torch.Size, geometry: Geometry, workspace: Workspace
) -> Iterator[Tensor]:
    """A few samples' gradients at a time, by one native backward in which every sample is a group of its own."""
    chunk = min(MOST, workspace.room(shape.numel(), inputs))
    none = [0] * len(geometry.kernel)
    for x, g in zip(inputs.split(chunk), grads.split(chunk), strict=True):
        c = x.shape[0]
        found = torch.ops.aten.convolution_backward(
            g.reshape(1, c * g.shape[1], *g.shape[2:]), x.reshape(1, c * x.shape[1], *x.shape[2:]),
            x.new_empty(c * shape[0], *shape[1:]), None, geometry.stride, geometry.zeros, geometry.dilation, False, none, c,
            [False, True, False],
        )[1]  # fmt: skip
        yield found.reshape(c, *shape)
