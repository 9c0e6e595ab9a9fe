"""The squared norm of the true gradient, without the share that noise adds to it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Below this ``1 - V₂`` all the weight lies on one sample, to rounding: nothing can be said about noise.
SMALLEST_REMAINDER = 1e-12


@np.errstate(all="ignore")
def signal(
    grad_sq_norm: NDArray[np.float64], contribution_sq_sum: NDArray[np.float64], weight_sq_sum: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``|G|²``: squared norm of the expected gradient.

    ``(‖ḡ‖² - Σ‖hᵢ‖²) / (1 - V₂)`` with ``V₂ = Σ wᵢ²``. It is the weighted mean of ``gᵢ·gⱼ`` over pairs ``i ≠ j``, hence
    unbiased for independent samples with a common mean, also where a sample's noise depends on its weight. Sometimes
    negative; never clamped, since a clamped figure would be biased.

    Args:
        grad_sq_norm: ``‖ḡ‖²``, any shape.
        contribution_sq_sum: ``Σ‖hᵢ‖²``, or an unbiased estimate; of a shape that broadcasts.
        weight_sq_sum: ``V₂``, ``1/n`` with equal weights; of a shape that broadcasts.

    Returns:
        ``|G|²`` in squared gradient units; NaN where ``V₂ = 1``, as with a single sample.

    Source:
        With equal weights: McCandlish et al. (2018), arXiv:1812.06162, appendix A.1, with ``B_small = 1``.
    """
    remainder = 1 - weight_sq_sum
    remainder = np.where(remainder > SMALLEST_REMAINDER, remainder, np.nan)
    found: NDArray[np.float64] = (grad_sq_norm - contribution_sq_sum) / remainder
    return found
