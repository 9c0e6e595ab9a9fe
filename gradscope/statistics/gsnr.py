"""Gradient signal-to-noise ratio per element."""

from __future__ import annotations

import torch
from torch import Tensor


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
    counted = (variance != 0) | (signal != 0)
    ratios = signal.to(torch.float64) / variance.to(torch.float64)
    return float(torch.where(counted, ratios, 0.0).sum()), int(counted.sum())


def gsnr(variance: Tensor, signal: Tensor) -> float:
    """Mean over elements of ``G² / variance``, per sample; NaN where no element moves. See ``gsnr_sum``."""
    total, count = gsnr_sum(variance, signal)
    return total / count if count else float("nan")
