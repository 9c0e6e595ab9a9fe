"""The noise scale as an Adam-like optimizer sees it."""

from __future__ import annotations

import torch
from torch import Tensor


def adam_preconditioner(second_moment: Tensor, step: float, beta2: float, eps: float) -> Tensor:
    """``P = 1 / (√v̂ + ε)``, with ``v̂ = v / (1 - β₂ᵗ)``: what Adam multiplies each element of the gradient with.

    Args:
        second_moment: ``v``, Adam's ``exp_avg_sq``, of the parameter's shape.
        step: ``t``, how many steps went into ``v``; at least 1.
        beta2: ``β₂``, within ``[0, 1)``.
        eps: ``ε``, not negative.

    Returns:
        ``P``, float64, in inverse gradient units.

    Source:
        Kingma and Ba (2015), arXiv:1412.6980, algorithm 1.
    """
    corrected = second_moment.to(torch.float64) / (1 - beta2**step)
    return torch.reciprocal(corrected.sqrt() + eps)


def preconditioned_sums(variance: Tensor, signal: Tensor, preconditioner: Tensor) -> tuple[float, float]:
    """``(tr(PΣ), GᵀPG)`` for a diagonal ``P``: their quotient is the preconditioned noise scale, in samples.

    ``Σⱼ Pⱼ·varianceⱼ`` and ``Σⱼ Pⱼ·Gⱼ²``. Unbiased as far as ``P`` does not depend on this window's samples; Adam's
    does, by a share of about ``1 - β₂``. Both add over parameters and are averaged over windows before dividing.
    Elements with ``P`` infinite (``v = 0`` and ``ε = 0``) never moved and are left out.

    Args:
        variance: elementwise variance of ``gᵢ``.
        signal: elementwise ``G²``, of the same shape; may be negative.
        preconditioner: the diagonal of ``P``, of the same shape.

    Source:
        McCandlish et al. (2018), arXiv:1812.06162, section 2.2: ``B_noise`` with ``P`` in the Hessian's place.
    """
    weight = torch.where(preconditioner.isinf(), 0.0, preconditioner.to(torch.float64))
    return float((weight * variance).sum()), float((weight * signal).sum())
