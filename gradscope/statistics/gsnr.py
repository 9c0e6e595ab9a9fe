"""Gradient signal-to-noise ratio per element."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradscope.kernels import ratio_sums, serves
from gradscope.statistics.elementwise import BLOCK
from gradscope.wide import knows_float64


def gsnr_sum(variance: Tensor, signal: Tensor) -> tuple[float, int]:
    """Sum over elements of ``G² / variance``, and over how many: their quotient is the GSNR.

    Elements that no sample moves (0/0) are left out; one that all samples move alike makes the sum infinite. Given as
    a sum and a count, since a layer's GSNR is the mean over its elements, not over its parameters. Unbiased numerator
    over unbiased denominator: negative terms stay, and few samples bias the ratio upwards by about ``(n-1)/(n-3)``.

    Args:
        variance: elementwise variance of ``gᵢ``, any shape.
        signal: elementwise ``G²``, of the same shape; may be negative.

    Source:
        Liu et al. (2020), "Understanding why neural networks generalize well through GSNR of parameters",
        arXiv:2001.07384, section 2.
    """
    if not knows_float64(variance.device):
        variance, signal = variance.cpu(), signal.cpu()
    if serves(variance, signal) and variance.is_contiguous() and signal.is_contiguous():
        return ratio_sums(variance, signal)
    total, count = 0.0, 0
    size = BLOCK if variance.is_cpu else max(1, variance.numel())
    for below, above in zip(variance.reshape(-1).split(size), signal.reshape(-1).split(size), strict=True):
        ratios = above.to(torch.float64) / below.to(torch.float64)
        found, counted = float(ratios.sum()), ratios.numel()
        if math.isnan(found):
            found, counted = _without_still(below, above, ratios)
        total, count = total + found, count + counted
    return total, count


def _without_still(below: Tensor, above: Tensor, ratios: Tensor) -> tuple[float, int]:
    """Sum and count of the ratios of elements that some sample moves."""
    if math.isfinite(float(below.sum()) + float(above.sum())) and math.isfinite(found := float(ratios.nansum())):
        # All is finite but 0/0. Numbers are added up faster than flags.
        return found, round(float(ratios.mul_(0).add_(1).nansum()))
    moved = (below != 0) | (above != 0)
    return float(torch.where(moved, ratios, 0.0).sum()), int(moved.sum())


def gsnr(variance: Tensor, signal: Tensor) -> float:
    """Mean over elements of ``G² / variance``, per sample; NaN where no element moves. See ``gsnr_sum``."""
    total, count = gsnr_sum(variance, signal)
    return total / count if count else float("nan")
