"""The noise scale as an Adam-like optimizer sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradscope.statistics.elementwise import BLOCK
from gradscope.statistics.signal import SMALLEST_REMAINDER
from gradscope.wide import wide_dtype, widen


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
    corrected = widen(second_moment) / (1 - beta2**step)
    return torch.reciprocal(corrected.sqrt() + eps)


def weighed_squares(grad: Tensor, contribution_sq: Tensor, adam: Callable[[slice], Tensor]) -> Tensor:
    """``⟨P, ḡ²⟩`` and ``⟨P, Σhᵢ²⟩`` for a diagonal ``P``, float64 ``[2]``: what ``preconditioned_sums`` follows from.

    A block of elements at a time, so that all steps but the first find them in a core's cache, and without the elementwise
    variance, which is two tensors more.

    Args:
        grad: ``ḡ``, of the parameter's shape.
        contribution_sq: ``Σ hᵢ²``, elementwise, of the same shape.
        adam: the diagonal of ``P``, for a slice of the flattened parameter.
    """
    flat_grad, flat_sq = grad.reshape(-1), contribution_sq.reshape(-1)
    found = torch.zeros(2, dtype=wide_dtype(flat_sq), device=flat_sq.device)
    size = BLOCK if flat_sq.is_cpu else max(1, flat_sq.numel())
    for start in range(0, flat_sq.numel(), size):
        block = slice(start, start + size)
        weight = widen(adam(block))
        weight = torch.where(weight.isinf(), 0.0, weight)
        part = flat_grad[block]
        mean_sq = widen(part.abs() if part.is_complex() else part).square()
        found += torch.stack([weight.dot(mean_sq), weight.dot(widen(flat_sq[block]))])
    return found


def sums_of_weighed(weighed: Sequence[float], weight_sq_sum: float, samples: int) -> tuple[float, float]:
    """``(tr(PΣ), GᵀPG)`` from ``weighed_squares``; NaN where ``V₂ = 1``.

    Both are linear in the elementwise variance and signal, and these in the squares: ``GᵀPG = (⟨P, ḡ²⟩ - ⟨P, Σhᵢ²⟩)/(1 - V₂)``
    and ``tr(PΣ) = n·(⟨P, Σhᵢ²⟩ - V₂⟨P, ḡ²⟩)/(1 - V₂)``.
    """
    mean_sq, own_sq = weighed
    remainder = 1 - weight_sq_sum
    if not remainder > SMALLEST_REMAINDER:
        return float("nan"), float("nan")
    return samples * (own_sq - weight_sq_sum * mean_sq) / remainder, (mean_sq - own_sq) / remainder


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
    weight = torch.where(preconditioner.isinf(), 0.0, widen(preconditioner))
    return float((weight * variance).sum()), float((weight * signal).sum())
