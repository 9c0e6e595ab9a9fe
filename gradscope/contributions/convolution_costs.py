"""What each algorithm for the per-sample gradients of a convolution costs; all are exact."""

from __future__ import annotations

from math import prod

from torch import Tensor

from gradscope.contributions import compiled_convolution
from gradscope.contributions.costs import rates
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.gram import share, strips
from gradscope.contributions.shifted_gram import MOST_STRIPS
from gradscope.contributions.shifts import grid_of, taken
from gradscope.contributions.workspace import Workspace

SHIFTED_GRAM, PATCHES, NATIVE, WINOGRAD = "shifted Gram", "patches", "native", "Winograd"

#: Positions of one of Winograd's tiles, and rows of input that they read.
TILE, READ = 4, 6

#: Nanoseconds of a multiply-add in oneDNN's depthwise convolutions: with kernels of up to nine offsets, and larger ones.
ALONE, NINE = (0.2, 1.6), 9

#: And what a filter of the latter costs for each offset before it multiplies.
BEGUN = 30.0

#: And in products of patches, each of which has a call of its own to pay for.
LONELY, PRODUCT = 1.0, 3e3

#: What Winograd's tiles cost where the third cache is not theirs alone, beside what they cost at best: left to ``tune=True``.
CROWDED = 1.6


def costs(
    inputs: Tensor, grads: Tensor, geometry: Geometry, workspace: Workspace, *, moments: bool
) -> dict[str, float]:
    """Nanoseconds of each algorithm that can be used.

    Args:
        inputs: padded input ``[n, channels, *spatial]``.
        grads: gradient of the output ``[n, channels_out, *positions]``.
        geometry: how the kernel walks.
        workspace: its room decides how many calls there are.
        moments: whether the elementwise second moment is wanted, which needs the gradients themselves.
    """
    n, groups, rate = inputs.shape[0], geometry.groups, rates(inputs)
    positions, out, offsets = prod(grads.shape[2:]), grads.shape[1] // groups, prod(geometry.kernel)
    channels = inputs.shape[1] // groups
    patch = channels * offsets
    work, passes = positions * patch * out, 3 if moments else 1
    reduced = passes * rate.reduce * patch * out
    unfolded = positions * patch
    chunks = -(-n // workspace.room(groups * unfolded, inputs, 2))
    found = compiled_convolution.costs(inputs, grads, geometry, workspace, moments=moments)
    lonely = channels == out == 1 and inputs.is_cpu
    multiplied = work * LONELY + PRODUCT if lonely else work * rate.multiply
    found |= {PATCHES: n * groups * (multiplied + unfolded * rate.unfold + reduced) + 8 * rate.call * chunks}
    if not inputs.is_complex():
        calls, each = n, rate.native_multiply
        if channels == out == 1:
            calls, each = 1, ALONE[offsets > NINE] if lonely else each
        begun = BEGUN * offsets if lonely and offsets > NINE else 0.0
        found[NATIVE] = n * groups * (work * each + begun + reduced) + calls * rate.native
    if not moments and compiled_convolution.SHIFTED_KERNEL not in found:
        grid = grid_of(tuple(inputs.shape[2:]), geometry)
        flat, pixels = taken(grid, tuple(grads.shape[2:])), prod(grid)
        phases = min(offsets, prod(geometry.stride))
        part = share(strips(flat, MOST_STRIPS))
        gram = (phases * pixels**2 * channels + flat**2 * out) * rate.multiply + flat**2 * offsets * rate.shift
        chunks = -(-n // workspace.room(groups * pixels**2, inputs))
        if workspace.allows(groups * pixels**2, inputs):
            found[SHIFTED_GRAM] = n * groups * gram * part + (10 + 2 * offsets) * rate.call * chunks
    if _in_tiles(inputs, grads, geometry):
        factors, products = elements(inputs, grads, geometry)
        work = products * (positions // grads.shape[3] // TILE * inputs.shape[3])
        if workspace.allows(max(factors, products), inputs):
            each = 1.2 * work * rate.multiply + 2 * factors * rate.shift + 10 * products * rate.reduce + reduced
            chunks = -(-n // workspace.room(room_of_tiles(factors, products), inputs))
            # Where others fill the third cache, tiles take 1.6 times as long and patches as long as ever.
            each *= CROWDED
            # Gradients lie in the order of the tiles, in which adding up their squares is slow.
            each *= 2 if moments else 1
            found[WINOGRAD] = n * each + (30 + 2 * geometry.kernel[1]) * rate.call * chunks
    return found


def elements(inputs: Tensor, grads: Tensor, geometry: Geometry) -> tuple[int, int]:
    """Elements of one sample's factors in Winograd's tiles, and of their products."""
    tiled = grads.shape[2] // TILE * inputs.shape[3]
    channels, out = inputs.shape[1], grads.shape[1]
    return READ * (channels + out) * tiled, READ * geometry.kernel[1] * channels * out


def room_of_tiles(factors: int, products: int) -> int:
    """Elements of one sample that a chunk of Winograd's tiles reckons with: no buffer is larger."""
    return max(products, factors + products // 2)


def _in_tiles(inputs: Tensor, grads: Tensor, geometry: Geometry) -> bool:
    """Two dimensions, three rows next to each other in the kernel, positions in whole tiles; measured on CPUs alone."""
    if len(geometry.kernel) != 2 or geometry.kernel[0] != 3 or geometry.dilation[0] != 1 or inputs.is_complex():
        return False
    return geometry.stride == (1, 1) and geometry.groups == 1 and grads.shape[2] % TILE == 0 and inputs.is_cpu
