"""Algorithms for the per-sample gradients of a convolution, all exact; a cost model chooses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Literal

import torch
from torch import Tensor

from gradscope.contributions.geometry import Geometry
from gradscope.contributions.outer_norms import gram_product

Algorithm = Literal["shifted Gram", "native", "patches"]

#: Elements of Gram matrices that exist at once.
CHUNK = 1 << 21

#: Multiply-adds that copying one element of a shifted block costs; measured on maps of 4×4 to 16×16.
_COPY = 10.0

#: Gram products run at this fraction of the native backward's rate.
_GRAM_RATE = 0.7


def cheapest(inputs: Tensor, grads: Tensor, geometry: Geometry) -> Algorithm:
    """The algorithm with the fewest operations, so that two runs give the same bits.

    Maps of few positions have small Gram matrices; larger ones are cheaper by the native backward, sample by sample.
    """
    if inputs.is_complex() or geometry.groups > 1:
        return "patches"
    positions, reached = prod(grads.shape[2:]), prod(inputs.shape[2:])
    channels, kernel, out = inputs.shape[1], prod(geometry.kernel), grads.shape[1]
    gram = reached**2 * channels + positions**2 * out + _COPY * kernel * positions**2
    native = positions * channels * kernel * out
    return "shifted Gram" if gram < _GRAM_RATE * native else "native"


def by_shifted_gram(inputs: Tensor, grads: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Squared norms from Gram matrices of positions, without unfolding.

    The Gram matrix of patches is the Gram matrix of the input's pixels, summed over the kernel's shifts.

    Args:
        inputs: padded input ``[n, channels, *spatial]``.
        grads: gradient of the output ``[n, channels_out, *positions]``.
        geometry: how the kernel walks; one group.

    Returns:
        The squared norms, float64 ``[n]``, and a mask of those whose digits were lost to cancellation.
    """
    parts = [_shifted(*pair, geometry) for pair in _chunks(inputs, grads)]
    return torch.cat([squares for squares, _ in parts]), torch.cat([lost for _, lost in parts])


def _chunks(inputs: Tensor, grads: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    chunk = max(1, CHUNK // prod(inputs.shape[2:]) ** 2)
    for start in range(0, inputs.shape[0], chunk):
        yield inputs[start : start + chunk], grads[start : start + chunk]


def _shifted(inputs: Tensor, grads: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    count, positions = inputs.shape[0], grads.shape[2:]
    pixels, backs = inputs.flatten(2), grads.flatten(2)
    gram = (pixels.mT @ pixels).reshape(count, *inputs.shape[2:], *inputs.shape[2:])
    total: Tensor | None = None
    for shift in product(*(range(size) for size in geometry.kernel)):
        block = tuple(
            slice(offset * spread, offset * spread + (size - 1) * step + 1, step)
            for offset, spread, size, step in zip(shift, geometry.dilation, positions, geometry.stride, strict=True)
        )
        index = (slice(None), *block, *block)
        part = gram[index]
        total = part.clone(memory_format=torch.contiguous_format) if total is None else total.add_(part)
    patches = gram if total is None else total
    flat = prod(positions)
    return gram_product(patches.reshape(count, flat, flat), backs.mT @ backs)


def native_gradient(inputs: Tensor, grads: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """``Σᵢ hᵢ`` of the given samples by torch's own backward of the convolution, of the parameter's shape."""
    none = [0] * len(geometry.kernel)
    found: Tensor = torch.ops.aten.convolution_backward(
        grads, inputs, inputs.new_empty(shape), None, geometry.stride, none, geometry.dilation, False, none, geometry.groups,
        [False, True, False],
    )[1]  # fmt: skip
    return found
