"""A convolution's kernel as shifts of flattened pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.geometry import Geometry


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """The pixels that some of the kernel's offsets read: all of them without a stride, else each s-th.

    Attributes:
        pixels: ``[N, channels, Q]``.
        offsets: of the kernel, flattened: where in ``[∏kernel]`` they stand.
        shifts: for each offset, how far its first pixel lies from the first of all; position t reads pixel ``t + shift``.
    """

    pixels: Tensor
    offsets: tuple[int, ...]
    shifts: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Shifts:
    """Inputs and output gradients on one flattened grid, so that each offset of the kernel is one shift.

    The grid is as wide as the input, which adds positions that no kernel takes; their gradients are zero.

    Attributes:
        phases: the inputs.
        grads: ``[N, channels out, M]``, M positions; each group of channels counts as a sample, ``N = n·groups``.
        groups: of channels.
    """

    phases: tuple[Phase, ...]
    grads: Tensor
    groups: int

    @classmethod
    def of(cls, inputs: Tensor, grads: Tensor, geometry: Geometry) -> Shifts:
        """Lay out padded ``inputs`` ``[n, channels, *spatial]`` and ``grads`` ``[n, channels out, *positions]``."""
        positions, groups = tuple(grads.shape[2:]), geometry.groups
        if groups > 1:
            inputs, grads = (tensor.unflatten(1, (groups, -1)).flatten(0, 1) for tensor in (inputs, grads))
        grid = grid_of(tuple(inputs.shape[2:]), geometry)
        wider = [amount for q, t in zip(grid[:0:-1], positions[:0:-1], strict=True) for amount in (0, q - t)]
        flat = (F.pad(grads, wider) if any(wider) else grads).flatten(2)
        return cls(tuple(_phases(inputs, geometry, grid)), flat[:, :, : taken(grid, positions)], groups)

    def probe(self, probe: Probe) -> Tensor:
        """``⟨hᵢ, Rⱼ⟩``, ``[n, k]``: each pixel meets the right factor at all offsets in one product; nothing is unfolded."""
        many, out, positions = self.grads.shape
        k, channels = probe.right.shape[0], self.phases[0].pixels.shape[1]
        filters = probe.right.reshape(k, channels, -1).transpose(1, 2)
        right: Tensor | None = None
        for phase in self.phases:
            own = filters[:, list(phase.offsets)].reshape(-1, channels)
            met = torch.matmul(own, phase.pixels).unflatten(1, (k, -1))
            for place, shift in enumerate(phase.shifts):
                part = met[:, :, place, shift : shift + positions]
                right = part.clone() if right is None else right.add_(part)
        if self.groups == 1:
            left = torch.matmul(probe.left, self.grads)
        else:
            apart = self.grads.reshape(-1, self.groups, out, positions)
            left = torch.matmul(probe.left.reshape(k, self.groups, out).transpose(0, 1), apart).flatten(0, 1)
        probes = (left if right is None else left.mul_(right)).sum(2)
        return probes if self.groups == 1 else probes.reshape(many // self.groups, self.groups, k).sum(1)


def grid_of(spatial: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    """Pixels of one phase in each dimension."""
    return tuple(-(-size // step) for size, step in zip(spatial, geometry.stride, strict=True))


def taken(grid: tuple[int, ...], positions: tuple[int, ...]) -> int:
    """M: one more than the flattened place of the last position."""
    place = 0
    for q, t in zip(grid, positions, strict=True):
        place = place * q + t - 1
    return place + 1


def _phases(inputs: Tensor, geometry: Geometry, grid: tuple[int, ...]) -> Iterator[Phase]:
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for place, offset in enumerate(product(*(range(size) for size in geometry.kernel))):
        reach = [o * spread for o, spread in zip(offset, geometry.dilation, strict=True)]
        phase = tuple(r % step for r, step in zip(reach, geometry.stride, strict=True))
        shift = 0
        for q, r, step in zip(grid, reach, geometry.stride, strict=True):
            shift = shift * q + r // step
        found.setdefault(phase, []).append((place, shift))
    strided = prod(geometry.stride) > 1
    for phase, entries in found.items():
        pixels = _strided(inputs, phase, geometry.stride, grid) if strided else inputs
        yield Phase(pixels.flatten(2), tuple(place for place, _ in entries), tuple(shift for _, shift in entries))


def _strided(inputs: Tensor, phase: tuple[int, ...], stride: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    spatial = tuple(slice(first, None, step) for first, step in zip(phase, stride, strict=True))
    part = inputs[(slice(None), slice(None)) + spatial]  # noqa: RUF005 - Python 3.10 knows no star in an index
    missing = [amount for q, s in zip(grid[::-1], part.shape[:1:-1], strict=True) for amount in (0, q - s)]
    return F.pad(part, missing) if any(missing) else part.contiguous()
