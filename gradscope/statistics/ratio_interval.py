"""The interval of a ratio of two means, by Fieller's theorem."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.statistics.student_t import student_t_quantile

#: Fewer pairs give no interval.
FEWEST_WINDOWS = 5
CONFIDENCE = 0.95


def ratio_interval(numerators: Tensor, denominators: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
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
    quantiles = {T: student_t_quantile(CONFIDENCE, T - 1) for T in set(count.tolist()) if T >= FEWEST_WINDOWS}
    t = torch.tensor([quantiles.get(T, torch.nan) for T in count.tolist()], dtype=x.dtype, device=x.device)
    x_mean, y_mean = x.sum(0) / count, y.sum(0) / count
    dx, dy = (x - x_mean) * used, (y - y_mean) * used
    factor = t.square() / (count * (count - 1))
    low, high = _accepted(
        y_mean.square() - factor * dy.square().sum(0),
        x_mean * y_mean - factor * (dx * dy).sum(0),
        x_mean.square() - factor * dx.square().sum(0),
    )
    return low * (x_scale / y_scale), high * (x_scale / y_scale)


def _scaled(values: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Values with zeros where not used, of largest size 1, and their scale: squares of tiny gradients underflow."""
    values = torch.where(used, values, 0.0)
    scale = values.abs().amax(0)
    scale = torch.where(scale > 0, scale, 1.0)
    return values / scale, scale


def _accepted(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of ``{ρ ≥ 0: aρ² - 2bρ + c ≤ 0}``, or ``(0, inf)`` where it is empty, in two pieces, or undefined (NaN)."""
    discriminant = b.square() - a * c
    # Where a > 0 the set holds x̄/ȳ, so a negative discriminant is rounding.
    root = torch.where(a > 0, discriminant.clamp(min=0), discriminant).sqrt()
    far = b + torch.copysign(root, b)
    first, second = far / a, torch.where(far == 0, 0.0, c / far)
    lower, upper = torch.minimum(first, second), torch.maximum(first, second)
    bounded = (a > 0) & (upper >= 0)
    # a ≤ 0: everything outside (lower, upper); at a lower root of 0 or more, [0, lower] would be a second piece.
    one_sided = (a <= 0) & (lower < 0) & (upper > 0)
    low = torch.where(bounded, lower.clamp(min=0), torch.where(one_sided, upper, 0.0))
    high = torch.where(bounded, upper, torch.inf)
    return low, high
