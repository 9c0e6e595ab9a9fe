"""The simple noise scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


@np.errstate(all="ignore")
def noise_scale(trace_cov: NDArray[np.float64], grad_sq: NDArray[np.float64]) -> NDArray[np.float64]:
    """Batch size at which the gradient's noise is as large as the gradient itself.

    ``tr Σ / |G|²``. Over several windows the ratio of the means, never a mean of ratios: ``|G|²`` may come near zero
    in a single window. The ratio of two unbiased figures is biased by the order of ``|G|²``'s relative variance.

    Args:
        trace_cov: ``tr Σ`` of one sample's gradient, in squared gradient units.
        grad_sq: ``|G|²``, in squared gradient units; may be negative.

    Returns:
        Noise scale in samples; NaN where ``|G|²`` is not positive, since the gradient cannot be told from zero there.

    Source:
        McCandlish et al. (2018), arXiv:1812.06162, section 2.2 and appendix A.1.
    """
    found: NDArray[np.float64] = trace_cov / np.where(grad_sq > 0, grad_sq, np.nan)
    return found
