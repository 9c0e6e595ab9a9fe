"""What the totals say, in words that claim no more than is known."""

from __future__ import annotations

import math

from gradscope.statistics.ratio_interval import FEWEST_WINDOWS

NO_WINDOW = "no window has been measured yet"


def verdict(samples: int, windows: int, noise_scale: float, interval: tuple[float, float]) -> str:
    """Whether noise or signal rules the gradient of ``samples`` samples.

    Args:
        samples: ``n`` of the newest window.
        windows: how many windows went into the figures.
        noise_scale: ``B`` in samples; NaN where not resolved.
        interval: its 95 % interval.

    Returns:
        One line. No verdict below five windows; a claim about the batch size only where the whole interval lies on one
        side of it.
    """
    low, high = interval
    if windows < FEWEST_WINDOWS:
        return f"no verdict yet: {windows} of the {FEWEST_WINDOWS} windows that an interval needs"
    if math.isnan(noise_scale):
        return _unresolved(samples, low)
    figures = f"(B ≈ {figure(noise_scale)}, [{figure(low)}, {figure(high)}])"
    if low > samples:
        return (
            f"at n={samples} noise exceeds signal {figures}: a larger batch would cut steps nearly in proportion, "
            "at no fewer samples, if the learning rate is retuned; plain-SGD measure"
        )
    if high < samples:
        return (
            f"at n={samples} signal exceeds noise {figures}: a larger batch would cut few steps, "
            "a smaller one would use fewer samples; plain-SGD measure"
        )
    return f"at n={samples} neither noise nor signal clearly exceeds the other {figures}; plain-SGD measure"


def _unresolved(samples: int, low: float) -> str:
    if not low > 0:
        return "not resolved: these windows do not tell the gradient from zero"
    if low > samples:
        return f"not resolved: at least {figure(low)}; at n={samples} noise exceeds signal; plain-SGD measure"
    return f"not resolved: at least {figure(low)}; more windows would tell"


def figure(value: float) -> str:
    """A positive number in two or three digits, without an exponent from 1 to a million: 340, 71, 8.4, 0.25, 1,200."""
    if not math.isfinite(value):
        return "∞" if value > 0 else str(value)
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
        return f"{value:.2g}"
    if abs(value) >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"
