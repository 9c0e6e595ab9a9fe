"""Squared norms of a convolution's per-sample gradients from Gram matrices of its pixels; no patch is gathered."""

from __future__ import annotations

import struct
from functools import lru_cache

import torch
from torch import Tensor

from gradscope.kernels import loaded
from gradscope.kernels.gram import APART
from gradscope.kernels.loaded import addresses, check, check_chosen, tile, up
from gradscope.kernels.products import Walk

#: Rows of a tile, at most: the last one may reach so far beyond the grid.
ROWS = 8


class ShiftedGram:
    """``Σ_{s,t} ⟨bₛ, bₜ⟩⟨patchₛ, patchₜ⟩`` for each sample, where patches meet as pixels do, summed over the kernel's offsets.

    Args:
        inputs: an image without its padding, ``[n, channels, height, width]``.
        grads: b, ``[n, p, rows, columns]``.
        walk: of the kernel.
        count: of how many samples; all by default.
        vector: bytes of a vector; by default the widest that this processor has.

    Attributes:
        scratch: elements of scratch memory that it takes.
        threads: how many of torch's take part: a sample is one's own.
    """

    __slots__ = ("_count", "_each", "_factors", "_numbers", "_vector", "_walk", "scratch", "threads")

    def __init__(
        self, inputs: Tensor, grads: Tensor, walk: Walk, count: int | None = None, vector: int = loaded.VECTOR
    ) -> None:
        inputs, grads = (factor if factor.stride(3) == 1 else factor.contiguous() for factor in (inputs, grads))
        self._factors = (inputs, grads)
        self._walk = walk
        self._vector = vector
        self._count = inputs.shape[0] if count is None else count
        self.threads = max(1, min(torch.get_num_threads(), self._count))
        shapes = (inputs.shape, inputs.stride(), grads.shape, grads.stride())
        self._numbers, self._each = _plan(*shapes, walk, tile(inputs.dtype, vector)[0], inputs.itemsize)
        self.scratch = self.threads * self._each

    def run(self, scratch: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sums, and what they would be if nothing cancelled; float64 ``[count]`` each.

        Args:
            scratch: memory of the factors' dtype with anything in it.
            chosen: the samples that are summed, int64, contiguous, as many as was said; all by default.
        """
        inputs = self._factors[0]
        enough = scratch.numel() >= self.scratch and scratch.dtype is inputs.dtype
        check(enough, "shifted Gram sums", scratch.shape, inputs.shape)
        check_chosen(chosen, self._count, inputs.shape[0], "shifted Gram sums")
        found = torch.empty(2, self._count, dtype=torch.float64, device="cpu")
        self._call(found, scratch, self._each, self.threads, self._count, chosen=chosen)
        return found[0], found[1]

    def look(self, left: Tensor, right: Tensor) -> Tensor:
        """``leftᵀ hᵢ right`` from one look at each factor, float64 ``[n]``.

        Args:
            left: ``[p]``, contiguous.
            right: of as many elements as a filter has, contiguous.
        """
        inputs, grads = self._factors
        (channels, height, width), area = inputs.shape[1:], self._walk.kernel[0] * self._walk.kernel[1]
        if height > 1 and inputs.stride(2) != width:
            # Rows of pixels are read as one.
            return ShiftedGram(inputs.contiguous(), grads, self._walk, vector=self._vector).look(left, right)
        found = torch.empty(inputs.shape[0], dtype=torch.float64, device="cpu")
        threads = max(1, min(torch.get_num_threads(), inputs.shape[0]))
        each = up(grads.shape[2] * grads.shape[3] + area * height * width, APART)
        directions = addresses((left, right), (grads.shape[1], channels * area), inputs)
        self._call(found, inputs.new_empty(threads * each), each, threads, inputs.shape[0], directions)
        return found

    def _call(
        self, found: Tensor, scratch: Tensor, each: int, threads: int, count: int, directions: tuple[int, int] = (0, 0),
        chosen: Tensor | None = None,
    ) -> None:  # fmt: skip
        inputs, grads = self._factors
        loaded.compiled().shifted(
            self._vector, inputs.dtype == torch.float64, threads, self._numbers, inputs.data_ptr(), grads.data_ptr(),
            *directions, found.data_ptr(), scratch.data_ptr(), each * inputs.itemsize,
            0 if chosen is None else chosen.data_ptr(), count,
        )  # fmt: skip


def sizes(x: torch.Size, g: torch.Size, walk: Walk, width: int) -> tuple[int, int, int]:
    """Places of a phase's grid and positions on it, in whole panels; and how many phases the kernel's offsets read."""
    grid = _grid(x, walk)
    positions = (g[2] - 1) * grid[1] + g[3]
    phases = 1
    for size, spread, step in zip(walk.kernel, walk.dilation, walk.stride, strict=True):
        phases *= len({offset * spread % step for offset in range(size)})
    return up(grid[0] * grid[1], width), up(positions, width), phases


def _grid(x: torch.Size, walk: Walk) -> tuple[int, int]:
    rows, columns = (
        -(-(size + 2 * zeros) // step) for size, zeros, step in zip(x[2:], walk.padding, walk.stride, strict=True)
    )
    return rows, columns


@lru_cache(maxsize=4096)
def _plan(
    x: torch.Size,
    x_steps: tuple[int, ...],
    g: torch.Size,
    g_steps: tuple[int, ...],
    walk: Walk,
    width: int,
    itemsize: int,
) -> tuple[bytes, int]:
    """What the kernel is told, and the elements of scratch memory that each thread needs."""
    check(x[0] == g[0] and walk.reaches(x, g), "shifted Gram sums", x, g)
    numbers = struct.pack(
        "23n",
        *x,
        *g[1:],
        *x_steps[:3],
        *g_steps[:3],
        *walk.kernel,
        *walk.stride,
        *walk.dilation,
        *walk.padding,
        *_grid(x, walk),
    )
    across, padded, phases = sizes(x, g, walk, width)
    addresses = -(-8 * walk.kernel[0] * walk.kernel[1] // itemsize)
    return numbers, up(padded * g[1] + across * x[1] + addresses + phases * (across + ROWS) * across, APART)
