"""The noise in one sample's gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


@np.errstate(all="ignore")
def trace_cov(
    grad_sq_norm: NDArray[np.float64], grad_sq: NDArray[np.float64], samples: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``tr Σ``: summed variance of one sample's gradient, at the window's weights.

    ``n · (‖ḡ‖² - |G|²)``: the variance of ``ḡ`` is the part of ``‖ḡ‖²`` that is not signal, and ``n`` brings it to
    one sample. With equal weights it is the ordinary unbiased ``n/(n-1) · (mean‖gᵢ‖² - ‖ḡ‖²)``. Unbiased wherever
    ``|G|²`` is.

    Args:
        grad_sq_norm: ``‖ḡ‖²``, any shape.
        grad_sq: ``|G|²``, see ``signal``; of a shape that broadcasts.
        samples: ``n``; of a shape that broadcasts.

    Returns:
        ``tr Σ`` in squared gradient units.

    Source:
        McCandlish et al. (2018), arXiv:1812.06162, appendix A.1.
    """
    found: NDArray[np.float64] = samples * (grad_sq_norm - grad_sq)
    return found
