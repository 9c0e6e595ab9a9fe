"""Whether a figure moved while it was averaged."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gradscope.statistics.student_t import student_t_inside

FEWEST_WINDOWS = 6
SIGNIFICANCE = 0.02
#: Halves whose means differ by less than this fraction are not worth a warning, however certain.
SMALLEST_CHANGE = 0.1


def drift(values: NDArray[np.float64]) -> bool:
    """Whether a series has a trend that chance does not explain and that sets its newer half apart from its older half.

    A t-test of the linear contrast ``Σ (t - t̄)·x_t``, which sees a gradual change sooner than a test of the halves
    does. The noise comes from successive differences, ``s² = Σ(x_{t+1} - x_t)² / (2(T-1))``, so that the drift does
    not hide in it; with ``2(T-1)²/(3T-4)`` degrees of freedom. False alarms on series without drift: 2 %.

    Args:
        values: ``[T]``, oldest first, finite.

    Returns:
        False with fewer than six windows.

    Source:
        von Neumann et al. (1941), "The mean square successive difference", Ann. Math. Stat. 12(2).
    """
    count = values.size
    if count < FEWEST_WINDOWS:
        return False
    half = count // 2
    older, newer = float(values[:half].mean()), float(values[-half:].mean())
    if not abs(newer - older) > SMALLEST_CHANGE * max(abs(newer), abs(older)):
        return False
    at = np.arange(count) - (count - 1) / 2
    contrast = abs(float((at * values).sum()))
    steps = values[1:] - values[:-1]
    spread = math.sqrt(float((at * at).sum()) * float((steps * steps).mean()) / 2)
    t = contrast / spread if spread > 0 else math.inf
    return student_t_inside(t, 2 * (count - 1) ** 2 // (3 * count - 4)) > 1 - SIGNIFICANCE
