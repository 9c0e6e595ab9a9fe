"""Signal over noise in the gradient that the optimizer applies."""

from __future__ import annotations

from torch import Tensor


def snr(grad_sq_norm: Tensor, grad_sq: Tensor) -> Tensor:
    """Signal-to-noise ratio at the effective batch: ``|G|² / (‖ḡ‖² - |G|²)``.

    A ratio of powers (not of amplitudes, not in decibels), equal to ``n / B`` with ``B`` the window's noise scale. It
    has ``|G|²``'s sign; ``inf`` where all samples agree.

    Args:
        grad_sq_norm: ``‖ḡ‖²``, any shape.
        grad_sq: ``|G|²``, see ``signal``.

    Source:
        McCandlish et al. (2018), arXiv:1812.06162, section 2.2, where it is ``B/B_simple``.
    """
    return grad_sq / (grad_sq_norm - grad_sq)
