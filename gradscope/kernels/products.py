"""Per-sample gradients of linear layers and convolutions, built tile by tile: squared, added up and forgotten in registers."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.kernels import loaded
from gradscope.kernels.gram import APART
from gradscope.kernels.loaded import addresses, check, check_chosen, tile, up

#: Rows and columns of a gradient that a thread works on at once, at most; and elements of samples' factors that its second cache
#: holds.
BAND, PART, CACHED = 128, 512, 1 << 17

#: How the kernel finds its columns: they are the inputs; they are patches; they are blocks of channels, shifted.
OUTER, PATCHES, BLOCKS = 0, 1, 2


class Walk(NamedTuple):
    """How the kernel of a convolution walks over an image, in two dimensions.

    Attributes:
        kernel: its rows and columns.
        stride: of both.
        dilation: of both.
        padding: zeros on both sides of both.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]

    def reaches(self, x: torch.Size, g: torch.Size) -> bool:
        """Whether all that positions ``g`` read lies on the image ``x`` or on its padding."""
        return all(
            (count - 1) * step + (size - 1) * spread < pixels + 2 * zeros
            for count, step, size, spread, pixels, zeros in zip(
                g[2:], self.stride, self.kernel, self.dilation, x[2:], self.padding, strict=True
            )
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    numbers: bytes
    rows: int
    columns: int
    pieces: int
    each: int
    threads: int


class Products:
    """``hᵢ = Σₜ grads[i, t]ᵀ inputs[i, t]``, or the gradient of a convolution's weight.

    Args:
        inputs: ``[n, T, d]``; with a walk an image without its padding, ``[n, channels, height, width]``.
        grads: ``[n, T, p]``; with a walk ``[n, p, rows, columns]``.
        walk: of the kernel; None for outer products.
        count: of how many samples; all by default.
        vector: bytes of a vector; by default the widest that this processor has.

    Attributes:
        scratch: elements of scratch memory that it takes.
        threads: how many of torch's take part: a band of rows and a part of the columns is one's own.
    """

    __slots__ = ("_count", "_grads", "_inputs", "_plan", "_vector", "scratch", "threads")

    def __init__(
        self, inputs: Tensor, grads: Tensor, walk: Walk | None = None, count: int | None = None, vector: int = loaded.VECTOR
    ) -> None:  # fmt: skip
        self._inputs = inputs if inputs.stride(-1) == 1 else inputs.contiguous()
        if walk is not None and grads.stride(2) != grads.shape[3] * grads.stride(3):
            grads = grads.contiguous()
        self._grads = grads
        self._vector = vector
        self._count = grads.shape[0] if count is None else count
        self._plan = _plan(
            inputs.shape, self._inputs.stride(), grads.shape, grads.stride(), walk, tile(inputs.dtype, vector),
            torch.get_num_threads(), self._count,
        )  # fmt: skip
        self.threads = self._plan.threads
        self.scratch = self.threads * self._plan.each

    def run(
        self, scratch: Tensor, *, total: Tensor | None = None, moment: Tensor | None = None,
        directions: tuple[Tensor, Tensor] | None = None, factors: bool = False, sums: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """``‖hᵢ‖²`` and, with directions, ``leftᵀ hᵢ right``, float64 ``[count]`` each; and what memory is given for.

        Args:
            scratch: memory of the factors' dtype with anything in it.
            total: for ``Σᵢ hᵢ``: as many elements as a gradient has, contiguous, with anything in it.
            moment: for ``Σᵢ hᵢ²`` elementwise, likewise.
            directions: left ``[p]`` and right, of as many elements as a row of the gradient has; contiguous.
            factors: whether the projections come from the factors, without a walk: they then share nothing with the sums.
            sums: for ``Σₜ grads[i, t]``, ``[count, p]``, contiguous.
            chosen: the samples that are meant, int64, contiguous, as many as was said; all by default.
        """
        plan, inputs, grads, count = self._plan, self._inputs, self._grads, self._count
        enough = scratch.numel() >= self.scratch and scratch.dtype is inputs.dtype
        check(enough, "products", scratch.shape, inputs.shape)
        for memory, size in (
            (total, plan.rows * plan.columns),
            (moment, plan.rows * plan.columns),
            (sums, count * plan.rows),
        ):
            if memory is not None:
                fits = memory.numel() == size and memory.is_contiguous() and memory.dtype == inputs.dtype
                check(fits, "products", memory.shape, inputs.shape, grads.shape)
        check_chosen(chosen, count, grads.shape[0], "products")
        left, right = (0, 0) if directions is None else addresses(directions, (plan.rows, plan.columns), inputs)
        found = torch.empty(2, plan.pieces, count, dtype=torch.float64, device="cpu")
        loaded.compiled().products(
            self._vector, inputs.dtype == torch.float64, plan.threads, plan.numbers, grads.data_ptr(), inputs.data_ptr(),
            0 if moment is None else moment.data_ptr(), 0 if total is None else total.data_ptr(), left, right,
            factors and directions is not None, 0 if sums is None else sums.data_ptr(), found.data_ptr(),
            scratch.data_ptr(), plan.each * inputs.itemsize, 0 if chosen is None else chosen.data_ptr(), grads.shape[0],
        )  # fmt: skip
        squares, probes = found.unbind()
        # Memory that nobody wrote is not read.
        return squares.sum(0), None if directions is None else probes.sum(0)


@lru_cache(maxsize=4096)
def _plan(
    x: torch.Size, x_steps: tuple[int, ...], g: torch.Size, g_steps: tuple[int, ...], walk: Walk | None,
    size: tuple[int, int], threads: int, count: int,
) -> _Plan:  # fmt: skip
    width, rows = size
    fits = x[:2] == g[:2] if walk is None else x[0] == g[0] and walk.reaches(x, g)
    check(fits, "products", x, g)
    if walk is None:
        (_, positions, p), kind, columns = g, OUTER, x[2]
        steps = (*g_steps, *x_steps[:2])
        image = (0, columns, *(0,) * 12)
    else:
        _, p, lines, length = g
        positions, columns = lines * length, x[1] * walk.kernel[0] * walk.kernel[1]
        # Channels side by side need no patches; a few of them would leave most of a vector empty.
        kind = BLOCKS if 3 * x[1] >= 2 * up(x[1], width) else PATCHES
        # Of a single column the step to the next one says nothing.
        steps = (g_steps[0], g_steps[3] if length > 1 else g_steps[2], g_steps[1], x_steps[0], x_steps[2])
        image = (x_steps[1], *x[1:], *walk.kernel, *walk.stride, *walk.dilation, *walk.padding, lines, length)
    # Parts of about one size.
    part = up(-(-columns // -(-columns // PART)), width) if kind == OUTER else columns
    panels, packed, border = up(part, width) // width, up(part, width) * positions, 0
    if walk is not None:
        pixels = (x[2] + 2 * walk.padding[0]) * (x[3] + 2 * walk.padding[1])
        if kind == BLOCKS:
            panels, packed = columns // x[1] * up(x[1], width) // width, up(x[1], width) * pixels
        else:
            border = x[1] * pixels + x[3] + 2 * walk.padding[1]
    # Columns are laid out anew for each band, so bands are as high as they may be.
    shares = -(-threads // -(-columns // part))
    band = min(BAND, max(2 * rows, up(-(-p // shares), rows)))
    chunk = max(1, min(count, CACHED // max(1, packed + positions * band)))
    numbers = struct.pack(
        "30n", count, positions, p, columns, *steps, *image, kind, band, part, chunk, panels, packed, border
    )
    each = chunk * (width + packed + positions * band) + (2 * band + 1) * panels * width + positions + border
    pieces = -(-p // band) * -(-columns // part)
    return _Plan(numbers, p, columns, pieces, up(each, APART), max(1, min(threads, pieces)))
