"""How far the samples' gradients are from pointing the same way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


@np.errstate(all="ignore")
def diversity(grad_sq_norm: NDArray[np.float64], contribution_sq_sum: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gradient diversity ``Σ‖gᵢ‖² / ‖Σgᵢ‖²``, without unit.

    Computed as ``Σ‖hᵢ‖² / ‖ḡ‖²``, which is the same with equal weights; with unequal ones every sample counts as it
    does in the optimizer's gradient. ``1/n`` where all samples agree, 1 where they are orthogonal, larger where they
    cancel. A description of these samples, not an estimate: no bias to speak of.

    Args:
        grad_sq_norm: ``‖ḡ‖²``, any shape.
        contribution_sq_sum: ``Σ‖hᵢ‖²``.

    Returns:
        The diversity; ``inf`` where the samples cancel exactly, NaN where all are zero.

    Source:
        Yin et al. (2018), "Gradient diversity: a key ingredient for scalable distributed learning", definition 1.
    """
    found: NDArray[np.float64] = contribution_sq_sum / grad_sq_norm
    return found
