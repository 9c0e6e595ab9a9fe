"""Whether a few samples carry so much that intervals are narrower than they should be."""

from __future__ import annotations

from torch import Tensor

LARGEST_SKEWNESS = 1.75


def heavy_tails(trace_cov: Tensor) -> bool:
    """Whether the windows' ``tr Σ`` are more skewed than those of light-tailed gradients."""
    centred = trace_cov - trace_cov.mean()
    skewness = float(centred.pow(3).mean() / centred.square().mean().pow(1.5))
    return skewness > LARGEST_SKEWNESS
