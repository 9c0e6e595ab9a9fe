"""Signal over noise in the gradient that the optimizer applies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


@np.errstate(all="ignore")
def snr(grad_sq_norm: NDArray[np.float64], grad_sq: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signal-to-noise ratio at the effective batch: ``|G|² / (‖ḡ‖² - |G|²)``.

    A ratio of powers (not of amplitudes, not in decibels), equal to ``n / B`` with ``B`` the window's noise scale. It
    has ``|G|²``'s sign; ``inf`` where all samples agree.

    Args:
        grad_sq_norm: ``‖ḡ‖²``, any shape.
        grad_sq: ``|G|²``, see ``signal``.

    Source:
        McCandlish et al. (2018), arXiv:1812.06162, section 2.2, where it is ``B/B_simple``.
    """
    found: NDArray[np.float64] = grad_sq / (grad_sq_norm - grad_sq)
    return found
