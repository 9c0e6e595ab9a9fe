"""Large gradients of a convolution, built from patches one sample after another."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.one_by_one import SMALL, OneByOne
from gradscope.contributions.products import pieces
from gradscope.contributions.workspace import Workspace


def are_large(inputs: Tensor, grads: Tensor, geometry: Geometry, workspace: Workspace) -> bool:
    """Whether each gradient is worth a product of its own, and a sample's patches fit into the room that there is.

    Args:
        inputs: padded input.
        grads: gradient of the output.
        geometry: how the kernel walks.
        workspace: its room decides.
    """
    if geometry.groups > 1 or inputs.is_complex() or not inputs.is_cpu:
        return False
    patch, out, positions = _sizes(inputs, grads, geometry)
    fits = workspace.allows(patch * positions, inputs) and workspace.allows(patch * out, inputs)
    return patch * out >= SMALL and patch >= out and fits


def patches_one_by_one(
    inputs: Tensor, grads: Tensor, geometry: Geometry, workspace: Workspace, *,
    summed: bool, moments: bool, probe: Probe | None = None,
) -> tuple[OneByOne, Tensor | None]:  # fmt: skip
    """Each sample's gradient as ``[patch, channels out]``, reduced before the next one is built.

    Args:
        inputs: padded input ``[n, channels, *spatial]``.
        grads: gradient of the output ``[n, channels out, *positions]``.
        geometry: how the kernel walks; one group.
        workspace: scratch memory.
        summed: whether the gradients' sum is wanted.
        moments: whether the elementwise second moment is wanted.
        probe: random directions, or None.

    Returns:
        The gradients' sums; and probes from the factors, ``[n, k]``, where that is the cheapest way to them.
    """
    patch, out, positions = _sizes(inputs, grads, geometry)
    n = inputs.shape[0]
    built = OneByOne(n, (patch, out), inputs, summed=summed, moments=moments, memory=workspace, turned=True)
    step = pieces(n, workspace.room(patch * positions, inputs, 2))
    probes: list[Tensor] = []
    for i in range(0, n, step):
        patches = geometry.unfold(inputs[i : i + step], 0, tuple(grads.shape[2:]), workspace.buffer)
        back = grads[i : i + step].flatten(2)
        built.take(patches, back.mT, i, workspace)
        if probe is not None and prod(geometry.stride) > 1:
            # With a stride, pixels would have to be sorted; patches exist, and each pixel is in few of them.
            probes.append(torch.matmul(probe.left, back).mul_(torch.matmul(probe.right, patches)).sum(2))
    return built, torch.cat(probes).double() if probes else None


def _sizes(inputs: Tensor, grads: Tensor, geometry: Geometry) -> tuple[int, int, int]:
    return inputs.shape[1] * prod(geometry.kernel), grads.shape[1], prod(grads.shape[2:])
