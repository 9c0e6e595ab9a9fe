"""Whether a few samples carry so much of the noise that intervals come out too narrow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradscope.statistics.ratio_interval import FEWEST_WINDOWS

#: Squared relative spread of ``‖gᵢ - G‖²`` over samples. Gaussian gradients of ``d`` elements have ``2/d``, Laplace
#: ``5/d``, Student t with five degrees of freedom ``8/d``; rows scaled by a lognormal with ``σ = 1`` have 53.
LARGEST_SPREAD = 4.0


@np.errstate(all="ignore")
def heavy_tails(trace_cov: NDArray[np.float64], effective_samples: NDArray[np.float64]) -> bool:
    """Whether the noise varies from sample to sample so strongly that the interval is optimistic.

    A window's ``tr Σ`` is a mean over its samples, so its relative variance times ``n`` is the squared relative
    spread of one sample's ``‖gᵢ - G‖²``. It is taken from successive differences, ``Σ (x_{t+1} - x_t)²/(1/n_t +
    1/n_{t+1}) / (T-1) / x̄²``, so that a drift is not read as a tail. Of ``tr Σ`` from exact contributions only:
    random signs add a spread of their own.

    Args:
        trace_cov: ``tr Σ`` per window, ``[T]``, oldest first, finite.
        effective_samples: ``1/V₂`` per window, ``[T]``; ``n`` with equal weights.

    Returns:
        False with fewer than five windows.
    """
    if trace_cov.size < FEWEST_WINDOWS:
        return False
    share = 1 / effective_samples
    steps = trace_cov[1:] - trace_cov[:-1]
    spread = (steps * steps / (share[1:] + share[:-1])).mean() / trace_cov.mean() ** 2
    return bool(spread > LARGEST_SPREAD)
