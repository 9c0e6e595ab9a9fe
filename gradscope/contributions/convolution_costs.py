"""What each algorithm for the per-sample gradients of a convolution costs; all are exact."""

from __future__ import annotations

from math import prod

from torch import Tensor

from gradscope.contributions.costs import rates
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.gram import share, strips
from gradscope.contributions.shifted_gram import MOST_STRIPS
from gradscope.contributions.shifts import grid_of, taken
from gradscope.contributions.workspace import Workspace

SHIFTED_GRAM, PATCHES, NATIVE = "shifted Gram", "patches", "native"


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
    found = {PATCHES: n * groups * (work * rate.multiply + unfolded * rate.unfold + reduced) + 8 * rate.call * chunks}
    if not inputs.is_complex():
        calls = 1 if channels == out == 1 else n
        found[NATIVE] = n * groups * (work * rate.native_multiply + reduced) + calls * rate.native
    if not moments:
        grid = grid_of(tuple(inputs.shape[2:]), geometry)
        flat, pixels = taken(grid, tuple(grads.shape[2:])), prod(grid)
        phases = min(offsets, prod(geometry.stride))
        part = share(strips(flat, MOST_STRIPS))
        gram = (phases * pixels**2 * channels + flat**2 * out) * rate.multiply + flat**2 * offsets * rate.shift
        chunks = -(-n // workspace.room(groups * pixels**2, inputs))
        if workspace.allows(groups * pixels**2, inputs):
            found[SHIFTED_GRAM] = n * groups * gram * part + (10 + 2 * offsets) * rate.call * chunks
    return found
