"""Why figures are NaN or withheld, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gradscope.statistics.ratio_interval import FEWEST_WINDOWS
from gradscope.statistics.signal import SMALLEST_REMAINDER
from gradscope.statistics.verdict import figure
from gradscope.summary.figures import Figures
from gradscope.summary.series import Series
from gradscope.window import Window


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def withheld(names: Sequence[str]) -> str:
    """The reason of a unit that includes parameters whose check failed."""
    return f"withheld: what was captured for {some(names)} does not add up to what autograd gave; see coverage"


def lacks_pairs(window: Window) -> bool:
    """Whether all the weight of a window lies on one sample."""
    return not 1 - window.weight_sq_sum > SMALLEST_REMAINDER


def not_a_figure(unit: int, found: Figures, all_series: Series, newest: Window) -> str:
    """Why a unit's figures are NaN; empty where they are not."""
    if found.windows[unit] == 0:
        return _no_noise(unit, all_series, newest)
    if math.isnan(found.noise_scale[unit]):
        return _not_resolved(found.trace_cov[unit], found.grad_sq[unit], found.windows[unit], found.interval[unit])
    if math.isnan(found.snr[unit]):
        return f"newest window: {_no_noise(unit, all_series, newest)}"
    return ""


def _no_noise(unit: int, all_series: Series, newest: Window) -> str:
    grad_sq_norm, contributions = all_series.grad_sq_norm[-1, unit], all_series.contribution_sq_sum[-1, unit]
    unknown = bool(np.isfinite(grad_sq_norm) & np.isnan(contributions))
    if not unknown and not bool(np.isfinite(grad_sq_norm + contributions)):
        return "the gradient is not finite"
    if lacks_pairs(newest):
        what = "one sample" if newest.samples == 1 else "samples of which one has all the weight"
        return f"a window of {what} shows no variance"
    return "a window of one micro-step shows no noise without its samples" if unknown else "the gradient is zero"


def _not_resolved(trace_cov: float, grad_sq: float, windows: int, interval: tuple[float, float]) -> str:
    if trace_cov == grad_sq == 0:
        return "the gradient is zero"
    if 1 < windows < FEWEST_WINDOWS:
        return f"not resolved: {windows} of the {FEWEST_WINDOWS} windows that an interval needs"
    if interval[0] > 0:
        return f"not resolved: at least {figure(interval[0])}"
    if not grad_sq > 0:
        return "not resolved: the mean |G|² is not positive"
    return "not resolved: these windows do not tell the gradient from zero"


def unmeasured(newest: Window) -> str:
    """Why a report has no figures at all."""
    stated = list(dict.fromkeys(coverage.reason for coverage in newest.coverage.values() if coverage.reason))
    return "no parameter was measured" + (f": {some(stated, 1)}" if stated else "")
