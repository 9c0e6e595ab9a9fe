"""Squared norms of a convolution's per-sample gradients from Gram matrices of positions, without unfolding."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.gram import strips, triangle
from gradscope.contributions.products import pieces
from gradscope.contributions.shifts import Shifts, grid_of
from gradscope.contributions.workspace import Workspace

#: Strips read the pixels between them twice, so that more than two do not pay.
MOST_STRIPS = 2


def by_shifted_gram(
    inputs: Tensor, grads: Tensor, geometry: Geometry, probe: Probe | None = None, workspace: Workspace | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Squared norms and probes.

    The Gram matrix of patches is the Gram matrix of the input's pixels, summed over the kernel's shifts.

    Args:
        inputs: padded input ``[n, channels, *spatial]``.
        grads: gradient of the output ``[n, channels_out, *positions]``.
        geometry: how the kernel walks.
        probe: random directions, or None.
        workspace: scratch memory.

    Returns:
        The squared norms, float64 ``[n]``; a mask of those whose digits were lost to cancellation; and the probes ``[n, k]``.
    """
    workspace, groups = workspace or Workspace(), geometry.groups
    pixels = prod(grid_of(tuple(inputs.shape[2:]), geometry))
    room = pieces(inputs.shape[0], workspace.room(groups * pixels**2, inputs))
    squares, lost, probes = [], [], []
    for i in range(0, inputs.shape[0], room):
        shifts = Shifts.of(inputs[i : i + room], grads[i : i + room], geometry)
        found, untrusted = _norms(shifts, workspace)
        squares.append(found.reshape(-1, groups).sum(1))
        lost.append(untrusted.reshape(-1, groups).any(1))
        if probe is not None:
            probes.append(shifts.probe(probe))
    return torch.cat(squares), torch.cat(lost), torch.cat(probes) if probes else None


def _norms(shifts: Shifts, workspace: Workspace) -> tuple[Tensor, Tensor]:
    grads = shifts.grads
    many, positions = grads.shape[0], grads.shape[2]

    def block(low: int, high: int) -> Tensor:
        shape = (many, high - low, high)
        patches = _patch_gram(shifts, low, high, workspace)
        # What held the pixels is free again.
        own = torch.bmm(
            grads[:, :, low:high].mT, grads[:, :, :high].conj(), out=workspace.buffer("pixels 0", shape, grads)
        )
        return patches.mul_(own).real if own.is_complex() else patches.mul_(own)

    return triangle(block, positions, strips(positions, MOST_STRIPS))


def _patch_gram(shifts: Shifts, low: int, high: int, workspace: Workspace) -> Tensor:
    """The Gram matrix of patches, rows ``low`` to ``high`` and columns up to ``high``."""
    many = shifts.grads.shape[0]
    total = workspace.buffer("patches", (many, high - low, high), shifts.grads)
    waiting: Tensor | None = None
    started = False
    for index, phase in enumerate(shifts.phases):
        reach = max(phase.shifts)
        rows, columns = phase.pixels[:, :, low : high + reach], phase.pixels[:, :, : high + reach]
        shape = (many, rows.shape[2], columns.shape[2])
        gram = torch.bmm(rows.mT, columns.conj(), out=workspace.buffer(f"pixels {index % 2}", shape, rows))
        for shift in phase.shifts:
            part = gram[:, shift : shift + high - low, shift : shift + high]
            if started:
                total.add_(part)
            elif waiting is None:
                waiting = part
            else:
                torch.add(waiting, part, out=total)
                started = True
    return total if started or waiting is None else total.copy_(waiting)
