"""Large gradients of a convolution, built from patches one sample after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.one_by_one import SMALL, OneByOne
from gradscope.contributions.products import pieces
from gradscope.contributions.workspace import Workspace
from gradscope.wide import wide_dtype, widen

#: ``(inputs, memory=...) -> patches``.
Unfold = Callable[..., Tensor]

#: Products over up to so many positions are faster when each position's channels lie next to each other.
SHORT = 64


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


@dataclass(slots=True, eq=False)
class Built:
    """What one pass over the samples' gradients gives; matrices are ``[channels out, patch]``.

    Attributes:
        squares: ``‖hᵢ‖²``, float64 ``[n]``.
        total: ``Σᵢ hᵢ`` in memory of its own, or None.
        second_moment: ``Σᵢ hᵢ²`` elementwise in memory that is lent, or None.
        probes: ``⟨hᵢ, Rⱼ⟩`` from the factors, float64 ``[n, k]``, where that is the cheapest way to them; else None.
    """

    squares: Tensor
    total: Tensor | None
    second_moment: Tensor | None
    probes: Tensor | None = None

    def take(self, built: OneByOne, own: slice) -> None:
        """Some rows of ``[patch, channels out]``."""
        self.squares += built.squares()
        for whole, part in ((self.total, built.total), (self.second_moment, built.second_moment)):
            if whole is not None and part is not None:
                whole[:, own].copy_(part.mT)


def patches_one_by_one(
    inputs: Tensor, grads: Tensor, geometry: Geometry, workspace: Workspace, *,
    summed: bool, moments: bool, probe: Probe | None = None,
) -> Built:  # fmt: skip
    """Each sample's gradient as ``[patch, channels out]``, reduced before the next one is built.

    Gradients larger than the cache are built some input channels at a time, for all samples, so that what they are added to
    stays there.

    Args:
        inputs: padded input ``[n, channels, *spatial]``.
        grads: gradient of the output ``[n, channels out, *positions]``.
        geometry: how the kernel walks; one group.
        workspace: scratch memory.
        summed: whether the gradients' sum is wanted.
        moments: whether the elementwise second moment is wanted.
        probe: random directions, or None.
    """
    patch, out, _ = _sizes(inputs, grads, geometry)
    n, offsets, shape = inputs.shape[0], prod(geometry.kernel), torch.Size((out, patch))
    total = inputs.new_empty(shape) if summed else None
    second = workspace.lend(shape, inputs) if moments else None
    found = Built(inputs.new_zeros(n, dtype=wide_dtype(inputs)), total, second)
    # With a stride, pixels would have to be sorted; patches exist, and each pixel is in few of them.
    probe = probe if prod(geometry.stride) > 1 else None
    met: list[Tensor] = []
    unfold, back = partial(geometry.unfold, first=0, positions=tuple(grads.shape[2:])), grads.flatten(2).mT
    if back.shape[1] <= SHORT:
        back = back.contiguous()
    # Squares alone gain nothing by it: smaller products cost as much.
    step = _at_once(inputs, patch * out, workspace) if summed else inputs.shape[1]
    for first in range(0, inputs.shape[1], step):
        part = inputs[:, first : first + step]
        own = slice(first * offsets, (first + part.shape[1]) * offsets)
        built = OneByOne(
            n, (own.stop - own.start, out), inputs, summed=summed, moments=moments, memory=workspace, turned=True,
            alone=step < inputs.shape[1],
        )  # fmt: skip
        met += _fill(built, part, back, unfold, workspace, None if probe is None else probe.right[:, own])
        found.take(built, own)
    if probe is not None:
        right = torch.stack(met).sum(0) if len(met) > 1 else met[0]
        found.probes = widen(torch.matmul(probe.left, grads.flatten(2)).mul_(right).sum(2))
    return found


def _at_once(inputs: Tensor, size: int, workspace: Workspace) -> int:
    """Input channels whose share of a gradient of this size is built at once: all, or a share of half the usual room."""
    channels = inputs.shape[1]
    if size <= workspace.room(1, inputs):
        return channels
    return pieces(channels, max(1, workspace.room(2 * size // channels, inputs)))


def _fill(
    built: OneByOne, inputs: Tensor, back: Tensor, unfold: Unfold, workspace: Workspace, directions: Tensor | None
) -> list[Tensor]:
    """Build what these input channels give, and their part of the probes' right factors ``[n, k, T]``."""
    n, patch, met = inputs.shape[0], built.size[0], []
    step = pieces(n, workspace.room(patch * back.shape[1], inputs, 2))
    for i in range(0, n, step):
        patches = unfold(inputs[i : i + step], memory=workspace.buffer)
        built.take(patches, back[i : i + step], i, workspace)
        if directions is not None:
            met.append(torch.matmul(directions, patches))
    return [torch.cat(met)] if met else []


def _sizes(inputs: Tensor, grads: Tensor, geometry: Geometry) -> tuple[int, int, int]:
    return inputs.shape[1] * prod(geometry.kernel), grads.shape[1], prod(grads.shape[2:])
