"""The interval of a ratio of two means, by Fieller's theorem."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradscope.statistics.student_t import student_t_quantile

#: Fewer pairs give no interval.
FEWEST_WINDOWS = 5
CONFIDENCE = 0.95

Floats = NDArray[np.float64]


@np.errstate(all="ignore")
def ratio_interval(numerators: Floats, denominators: Floats, used: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """95 % interval of mean numerator over mean denominator, within ``[0, ∞)``, from paired windows.

    The set of all ``ρ`` that a t-test of ``mean(x - ρy) = 0`` with ``T - 1`` degrees of freedom does not reject: with
    ``a = ȳ² - t²s_yy``, ``b = x̄ȳ - t²s_xy``, ``c = x̄² - t²s_xx`` (``s`` the covariances of the means) it is
    ``aρ² - 2bρ + c ≤ 0``. Where ``a > 0`` that is a finite interval. Where ``ȳ`` cannot be told from zero it is
    everything outside two roots, of which ``[0, ∞)`` keeps "at least …", two pieces, or all.

    Exact for pairs that are jointly normal, independent and alike; with heavy tails it is optimistic (``heavy_tails``).

    Args:
        numerators: ``[T, U]``, ``x``: one column per quantity.
        denominators: ``[T, U]``, ``y``, paired with them.
        used: ``[T, U]``, bool: which windows count; what lies elsewhere may be NaN.

    Returns:
        Lower and upper ends, ``[U]`` each, in units of ``x/y``. ``(0, inf)`` with fewer than five windows and where the
        set is empty or falls in two.

    Source:
        Fieller (1954), "Some problems in interval estimation", J. R. Stat. Soc. B 16(2).
    """
    x, x_scale = _scaled(numerators, used)
    y, y_scale = _scaled(denominators, used)
    count = used.sum(0)
    counts = count.tolist()
    quantiles = {T: student_t_quantile(CONFIDENCE, T - 1) for T in set(counts) if T >= FEWEST_WINDOWS}
    t = np.array([quantiles.get(T, np.nan) for T in counts])
    x_mean, y_mean = x.sum(0) / count, y.sum(0) / count
    dx, dy = (x - x_mean) * used, (y - y_mean) * used
    factor = t * t / (count * (count - 1))
    low, high = _accepted(
        y_mean * y_mean - factor * (dy * dy).sum(0),
        x_mean * y_mean - factor * (dx * dy).sum(0),
        x_mean * x_mean - factor * (dx * dx).sum(0),
    )
    return low * (x_scale / y_scale), high * (x_scale / y_scale)


def _scaled(values: Floats, used: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Values with zeros where not used, of largest size 1, and their scale: squares of tiny gradients underflow."""
    values = np.where(used, values, 0.0)
    scale = np.abs(values).max(0)
    scale = np.where(scale > 0, scale, 1.0)
    return values / scale, scale


def _accepted(a: Floats, b: Floats, c: Floats) -> tuple[Floats, Floats]:
    """Ends of ``{ρ ≥ 0: aρ² - 2bρ + c ≤ 0}``, or ``(0, inf)`` where it is empty, in two pieces, or undefined (NaN)."""
    discriminant = b * b - a * c
    # Where a > 0 the set holds x̄/ȳ, so a negative discriminant is rounding.
    root = np.sqrt(np.where(a > 0, np.maximum(discriminant, 0), discriminant))
    far = b + np.copysign(root, b)
    first, second = far / a, np.where(far == 0, 0.0, c / far)
    lower, upper = np.minimum(first, second), np.maximum(first, second)
    bounded = (a > 0) & (upper >= 0)
    # a ≤ 0: everything outside (lower, upper); at a lower root of 0 or more, [0, lower] would be a second piece.
    one_sided = (a <= 0) & (lower < 0) & (upper > 0)
    low = np.where(bounded, np.maximum(lower, 0), np.where(one_sided, upper, 0.0))
    high = np.where(bounded, upper, np.inf)
    return low, high
