"""Probes of a convolution from its factors as they are: nothing is unfolded, padded or sorted but one map a direction."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.products import pieces
from gradscope.contributions.workspace import Workspace


def placed_probe(inputs: Tensor, grads: Tensor, geometry: Geometry, probe: Probe) -> Tensor:
    """``⟨hᵢ, Rⱼ⟩``, ``[n, k]``.

    Along ``leftⱼ`` the output gradient is a map of one channel. Where each offset of the kernel reads, it is placed on the
    input's pixels, and one product sums it up over them.

    Args:
        inputs: ``[n, channels, *spatial]``, with the geometry's padding still to come.
        grads: gradient of the output ``[n, channels out, *positions]``.
        geometry: how the kernel walks; one group.
        probe: random directions.
    """
    (n, channels), k = inputs.shape[:2], probe.right.shape[0]
    kernel = [dim + 2 for dim in range(len(geometry.kernel))]
    # Offsets run backwards: from the pixel to the position.
    right = probe.right.reshape(k, channels, *geometry.kernel).flip(kernel).flatten(2).transpose(1, 2)
    workspace = Workspace()
    step = pieces(n, workspace.room(k * prod(geometry.kernel) * prod(inputs.shape[2:]), inputs))
    found = []
    for i in range(0, n, step):
        x, g = inputs[i : i + step], grads[i : i + step]
        left = torch.matmul(probe.left, g.flatten(2)).unflatten(2, g.shape[2:])
        maps = _placed(left, geometry, tuple(x.shape[2:]), workspace)
        met = torch.bmm(maps, x.flatten(2).mT).unflatten(1, (k, -1))
        found.append(met.mul_(right).sum((2, 3)))
    return found[0] if len(found) == 1 else torch.cat(found)


def _placed(left: Tensor, geometry: Geometry, spatial: tuple[int, ...], workspace: Workspace) -> Tensor:
    """``[n, k·∏kernel, ∏spatial]``: what stands at the position that meets a pixel at an offset, offsets backwards."""
    reach = [(size - 1) * spread for size, spread in zip(geometry.kernel, geometry.dilation, strict=True)]
    wide = left.new_zeros(*left.shape[:2], *(s + r for s, r in zip(spatial, reach, strict=True)))
    taken: list[slice] = [slice(None), slice(None)]
    places: list[slice] = [slice(None), slice(None)]
    for count, size, far, zeros, step in zip(
        left.shape[2:], wide.shape[2:], reach, geometry.zeros, geometry.stride, strict=True
    ):
        first = far - zeros
        # Padding wider than the kernel leaves positions that read nothing else.
        skipped = max(0, -(first // step))
        start = first + skipped * step
        kept = min(count - skipped, max(0, -(-(size - start) // step)))
        taken.append(slice(skipped, skipped + kept))
        places.append(slice(start, start + step * (kept - 1) + 1 if kept > 0 else start, step))
    wide[tuple(places)] = left[tuple(taken)]
    ones = (1,) * len(spatial)
    return replace(geometry, stride=ones, groups=1).unfold(wide, 0, spatial, workspace.buffer)
