"""Every sample's gradient of filters that read one channel each: so few numbers that they are simply written down."""

from __future__ import annotations

import struct
from functools import lru_cache

import torch
from torch import Tensor

from gradscope.kernels import loaded
from gradscope.kernels.loaded import check, tile, up
from gradscope.kernels.products import Walk


def depthwise_gradients(inputs: Tensor, grads: Tensor, walk: Walk, *, vector: int = loaded.VECTOR) -> Tensor:
    """``hᵢ`` of each filter, ``[n, filters, rows · columns of the kernel]``.

    Args:
        inputs: ``[n, channels, height, width]``, with the walk's padding still to come.
        grads: gradient of the output ``[n, filters, lines, length]``; each channel has as many filters, one after the other.
        walk: how the kernel walks.
        vector: bytes of a vector; by default the widest that this processor has.
    """
    lanes = tile(inputs.dtype, vector)[0] // 2
    numbers, each = _plan(inputs.shape, inputs.stride(), grads.shape, grads.stride(), walk, lanes)
    n, threads = inputs.shape[0], max(1, min(torch.get_num_threads(), inputs.shape[0]))
    check(inputs.dtype is grads.dtype, "depthwise convolutions", inputs.shape, grads.shape)
    found = grads.new_empty(n, grads.shape[1], walk.kernel[0] * walk.kernel[1])
    scratch = grads.new_empty(threads * each)
    loaded.compiled().depthwise(
        vector, inputs.dtype is torch.float64, threads, numbers, inputs.data_ptr(), grads.data_ptr(), found.data_ptr(),
        scratch.data_ptr(), each * inputs.itemsize,
    )  # fmt: skip
    return found


def places(x: torch.Size, g: torch.Size, walk: Walk) -> int:
    """Numbers that are multiplied for each offset of the kernel."""
    pitch = x[3] + 2 * walk.padding[1]
    return (g[2] - 1) * walk.stride[0] * pitch + (g[3] - 1) * walk.stride[1] + 1


@lru_cache(maxsize=4096)
def _plan(
    x: torch.Size, x_steps: tuple[int, ...], g: torch.Size, g_steps: tuple[int, ...], walk: Walk, lanes: int
) -> tuple[bytes, int]:
    """What the kernel is told, and the elements of scratch memory that each thread needs."""
    fits = len(x) == len(g) == 4 and x[0] == g[0] and g[1] % x[1] == 0 and walk.reaches(x, g)
    check(fits, "depthwise convolutions", x, g)
    pitch, rows = x[3] + 2 * walk.padding[1], x[2] + 2 * walk.padding[0]
    span = up(places(x, g, walk), lanes)
    farthest = (walk.kernel[0] - 1) * walk.dilation[0] * pitch + (walk.kernel[1] - 1) * walk.dilation[1]
    padded = up(max(rows * pitch, span + farthest), lanes)
    numbers = struct.pack(
        "25n", *x, *g[1:], *x_steps, *g_steps, *walk.kernel, *walk.stride, *walk.dilation, *walk.padding, padded, span
    )
    # Behind them, where each offset of the kernel begins to read: an address takes as much as two numbers at most.
    return numbers, up(padded + span + 2 * walk.kernel[0] * walk.kernel[1], lanes)
