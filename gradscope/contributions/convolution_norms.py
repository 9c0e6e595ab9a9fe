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

# A rough model in multiply-adds of one sample, fitted to maps of 4×4 to 32×32 on one thread.
#: Copying one element of a shifted block, and of an unfolded patch.
_COPY, _UNFOLD = 10.0, 30.0
#: Gram matrices of pixels run at this fraction of the native backward's rate, products of patches at that.
_GRAM_RATE, _PATCH_RATE = 0.7, 0.67
#: What the calls themselves cost: for each sample by the native backward, for the whole micro-batch otherwise.
_CALLS = 1e6


def cheapest(inputs: Tensor, grads: Tensor, geometry: Geometry) -> Algorithm:
    """The algorithm with the fewest operations, so that two runs give the same bits.

    Maps of few positions have small Gram matrices; larger ones are cheaper by the native backward, sample by sample; for the
    smallest layers the number of calls is all that counts.
    """
    if inputs.is_complex() or geometry.groups > 1:
        return "patches"
    samples, positions, reached = inputs.shape[0], prod(grads.shape[2:]), prod(inputs.shape[2:])
    out, patch = grads.shape[1], inputs.shape[1] * prod(geometry.kernel)
    copies = _COPY * prod(geometry.kernel) * positions**2
    gram = reached**2 * inputs.shape[1] + positions**2 * out + copies
    product = min(positions * patch * out, positions**2 * (patch + out))
    costs: dict[Algorithm, float] = {
        "native": positions * patch * out + _CALLS,
        "shifted Gram": gram / _GRAM_RATE + 2 * _CALLS / samples,
        "patches": product / _PATCH_RATE + _UNFOLD * positions * patch + _CALLS / samples,
    }
    return min(costs, key=costs.__getitem__)


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
