"""Variance and signal of every element of a parameter's gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.kernels import serves, variance_and_signal
from gradscope.statistics.signal import SMALLEST_REMAINDER
from gradscope.wide import knows_float64

#: Elements that are worked on at once, so that all steps but the first find them in a core's cache.
BLOCK = 1 << 16


def elementwise_moments(
    grad: Tensor, contribution_sq: Tensor, weight_sq_sum: float, samples: int
) -> tuple[Tensor, Tensor]:
    """Variance of ``gᵢ`` and square of the true gradient, for every element on its own.

    ``G² = (ḡ² - Σhᵢ²)/(1 - V₂)`` and ``variance = n·(ḡ² - G²) = n·(Σhᵢ² - V₂ḡ²)/(1 - V₂)``, elementwise. Both
    unbiased, on the scale of ``gᵢ``; with equal weights the variance is ``(n·h).var(0)``. Summed over elements they
    give ``tr Σ`` and ``|G|²``. Computed in float64, on the host where the device
    knows none: the two terms nearly cancel where signal dominates.

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
    if serves(grad, contribution_sq) and grad.is_contiguous() and contribution_sq.is_contiguous():
        return variance_and_signal(grad, contribution_sq, weight_sq_sum, samples)
    if not knows_float64(grad.device):
        found = elementwise_moments(grad.cpu(), contribution_sq.cpu(), weight_sq_sum, samples)
        return found[0].to(grad.device), found[1].to(grad.device)
    flat_grad, flat_sq = grad.reshape(-1), contribution_sq.reshape(-1)
    variance, signal = torch.empty_like(flat_sq), torch.empty_like(flat_sq)
    size = BLOCK if flat_sq.is_cpu else max(1, flat_sq.numel())
    blocks = zip(*(whole.split(size) for whole in (flat_grad, flat_sq, variance, signal)), strict=True)
    for part, own, variance_part, signal_part in blocks:
        mean_sq = (part.abs() if part.is_complex() else part).to(torch.float64, copy=True).square_()
        own_sq = own.to(torch.float64, copy=True)
        signal_part.copy_(torch.sub(mean_sq, own_sq).mul_(1 / remainder))
        variance_part.copy_(own_sq.sub_(mean_sq, alpha=weight_sq_sum).mul_(samples / remainder))
    return variance.reshape(contribution_sq.shape), signal.reshape(contribution_sq.shape)
