"""The norms of the per-sample gradients, and their quantiles."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@np.errstate(all="ignore")
def sample_norms(sample_sq_norms: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """``‖gᵢ‖ = ‖hᵢ‖ / wᵢ``: gradient norm of each sample (GraNd), in gradient units.

    Args:
        sample_sq_norms: ``‖hᵢ‖²``, ``[..., n]``; NaN where a sample was not measured.
        weights: ``wᵢ``, positive and summing to 1, ``[n]``.

    Returns:
        ``[..., n]``; NaN where not measured.

    Source:
        Paul et al. (2021), "Deep learning on a data diet", definition 2.1.
    """
    found: NDArray[np.float64] = np.sqrt(sample_sq_norms) / weights
    return found


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
