"""The norms of the per-sample gradients, and their quantiles."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_norms(sample_sq_norms: Tensor, weights: Tensor) -> Tensor:
    """``‖gᵢ‖ = ‖hᵢ‖ / wᵢ``: gradient norm of each sample (GraNd), in gradient units.

    Args:
        sample_sq_norms: ``‖hᵢ‖²``, ``[..., n]``; NaN where a sample was not measured.
        weights: ``wᵢ``, positive and summing to 1, ``[n]``.

    Returns:
        ``[..., n]``; NaN where not measured.

    Source:
        Paul et al. (2021), "Deep learning on a data diet", definition 2.1.
    """
    return sample_sq_norms.sqrt() / weights


def norm_quantiles(norms: Tensor, levels: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)) -> tuple[float, ...]:
    """Quantiles of the measured norms, interpolated linearly, in gradient units; NaN where none was measured.

    Args:
        norms: ``‖gᵢ‖``, ``[n]``; NaN where a sample was not measured.
        levels: within ``[0, 1]``.
    """
    measured = norms[~norms.isnan()]
    if measured.numel() == 0:
        return tuple(float("nan") for _ in levels)
    at = torch.tensor(levels, dtype=measured.dtype, device=measured.device)
    return tuple(torch.quantile(measured, at).tolist())
