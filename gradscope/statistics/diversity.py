"""How far the samples' gradients are from pointing the same way."""

from __future__ import annotations

from torch import Tensor


def diversity(grad_sq_norm: Tensor, contribution_sq_sum: Tensor) -> Tensor:
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
    return contribution_sq_sum / grad_sq_norm
