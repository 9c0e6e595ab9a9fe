"""Two batch sizes: the sum of squared contributions, from the gradients of parts of a window and of the whole."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradscope.statistics.signal import signal


def contribution_sq_sum_of_parts(
    grad_sq_norm: NDArray[np.float64],
    part_sq_sum: NDArray[np.float64],
    part_weight_sq_sum: NDArray[np.float64],
    weight_sq_sum: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Unbiased estimate of ``Σ‖hᵢ‖²`` where only the gradients ``Δⱼ`` of parts of the window are known.

    ``‖ḡ‖² - (1 - V₂)·|G|²`` with ``|G|² = (‖ḡ‖² - Σ‖Δⱼ‖²)/(1 - Σ Wⱼ²)``: a part whose samples weigh ``Wⱼ = Σᵢ wᵢ`` counts
    as one sample of that weight, since ``E Δⱼ = Wⱼ G`` and parts are independent. Parts are any split of the window's samples
    that does not depend on them: micro-steps (accumulated into ``ḡ``), or ranks (before their gradients are reduced).
    With equal weights, the mean over all ways to split the same samples into parts of the same sizes is the exact
    ``Σ‖hᵢ‖²``. Parts of equal weight: McCandlish et al.'s estimator of two batch sizes. One window is noisier than
    ``Σ‖hᵢ‖²`` itself: it knows pairs of parts, not of samples.

    Args:
        grad_sq_norm: ``‖ḡ‖²``, ``ḡ = Σ Δⱼ``; any shape.
        part_sq_sum: ``Σ‖Δⱼ‖²``; of a shape that broadcasts.
        part_weight_sq_sum: ``Σ Wⱼ²``, ``1/k`` for ``k`` equal parts; likewise.
        weight_sq_sum: ``V₂ = Σ wᵢ²`` of the samples; likewise.

    Returns:
        The estimate in squared gradient units, of which ``signal`` makes ``|G|²`` again; may be negative; NaN where one part
        has all the weight.

    Source:
        McCandlish et al. (2018), arXiv:1812.06162, appendix A.1, for two sizes; unequal parts as in ``signal``.
    """
    found: NDArray[np.float64] = grad_sq_norm - (1 - weight_sq_sum) * signal(
        grad_sq_norm, part_sq_sum, part_weight_sq_sum
    )
    return found
