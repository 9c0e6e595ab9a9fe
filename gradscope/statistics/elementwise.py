"""Variance and signal of every element of a parameter's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.statistics.signal import SMALLEST_REMAINDER


def elementwise_moments(
    grad: Tensor, contribution_sq: Tensor, weight_sq_sum: float, samples: int
) -> tuple[Tensor, Tensor]:
    """Variance of ``gᵢ`` and square of the true gradient, for every element on its own.

    ``G² = (ḡ² - Σhᵢ²)/(1 - V₂)`` and ``variance = n·(ḡ² - G²) = n·(Σhᵢ² - V₂ḡ²)/(1 - V₂)``, elementwise. Both
    unbiased, on the scale of ``gᵢ``; with equal weights the variance is ``(n·h).var(0)``. Summed over elements they
    give ``tr Σ`` and ``|G|²``. Computed in float64: the two terms nearly cancel where signal dominates.

    Args:
        grad: ``ḡ``, of the parameter's shape.
        contribution_sq: ``Σ hᵢ²``, elementwise, of the same shape.
        weight_sq_sum: ``V₂ = Σ wᵢ²``; ``1/n`` with equal weights.
        samples: ``n``.

    Returns:
        ``(variance, G²)``, of the parameter's shape and ``contribution_sq``'s dtype, in squared gradient units;
        ``G²`` may be negative. NaN where ``V₂ = 1``.
    """
    remainder = 1 - weight_sq_sum
    if not remainder > SMALLEST_REMAINDER:
        nothing = torch.full_like(contribution_sq, torch.nan)
        return nothing, nothing.clone()
    mean_sq = grad.abs().to(torch.float64).square()
    own_sq = contribution_sq.to(torch.float64)
    variance = samples * (own_sq - weight_sq_sum * mean_sq) / remainder
    signal = (mean_sq - own_sq) / remainder
    return variance.to(contribution_sq.dtype), signal.to(contribution_sq.dtype)
