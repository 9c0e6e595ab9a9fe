"""Whether a figure moved while it was averaged."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradscope.statistics.student_t import student_t_inside

FEWEST_WINDOWS = 6
SIGNIFICANCE = 0.01
#: A change of the means by less than this fraction is not worth a warning, however certain.
SMALLEST_CHANGE = 0.1


def drift(values: Tensor) -> bool:
    """Whether the newer half of a series differs from the older half by more than chance.

    A t-test of the halves' means. The noise comes from successive differences, ``Σ(x_{t+1} - x_t)² / (2(T-1))`` (von
    Neumann), so that the drift itself does not hide in it; that estimate has about ``2(T-1)/3`` degrees of freedom.

    Args:
        values: ``[T]``, oldest first, finite; a middle one is left out where ``T`` is odd.

    Returns:
        False with fewer than six windows.

    Source:
        von Neumann (1941), "Distribution of the ratio of the mean square successive difference to the variance".
    """
    count = values.numel()
    if count < FEWEST_WINDOWS:
        return False
    half = count // 2
    older, newer = float(values[:half].mean()), float(values[-half:].mean())
    variance = float(torch.diff(values).square().mean()) / 2
    change = abs(newer - older)
    if not change > SMALLEST_CHANGE * max(abs(newer), abs(older)):
        return False
    t = change / math.sqrt(2 * variance / half) if variance > 0 else math.inf
    return student_t_inside(t, 2 * (count - 1) // 3) > 1 - SIGNIFICANCE
