"""The samples whose gradients stand out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: A sample stands out from this multiple of the median on; Gaussian gradients of ten elements or more stay below it.
SMALLEST_RATIO = 2.0
MOST_OUTLIERS = 5


@np.errstate(all="ignore")
def outliers(norms: NDArray[np.float64]) -> list[tuple[tuple[int, float], ...]]:
    """Samples whose ``‖gᵢ‖`` is at least twice the median, at most five per row.

    Args:
        norms: ``‖gᵢ‖``, ``[U, n]``: one row per layer, say; NaN where a sample was not measured.

    Returns:
        Per row (index, ``‖gᵢ‖`` over the median of the measured samples), largest first. Empty where the median is
        zero: a ratio to it means nothing.
    """
    found: list[tuple[tuple[int, float], ...]] = [() for _ in range(norms.shape[0])]
    if norms.shape[1] == 0:
        return found
    median = _median(norms)
    ratios = norms / np.where(median > 0, median, np.nan)[:, None]
    outlying = ratios >= SMALLEST_RATIO  # NaN compares false
    for row in np.flatnonzero(outlying.any(1)).tolist():
        own = ratios[row]
        indices = np.flatnonzero(outlying[row])
        largest = indices[np.argsort(-own[indices], kind="stable")[:MOST_OUTLIERS]]
        found[row] = tuple(zip(largest.tolist(), own[largest].tolist(), strict=True))
    return found


def _median(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median of each row's numbers, ``[U]``: the middle of the two middle ones where their count is even."""
    count = (norms == norms).sum(1)
    lower, upper = (count - 1) // 2, count // 2
    places = {*lower.tolist(), *upper.tolist()} - {-1, norms.shape[1]}
    ordered = np.partition(norms, sorted(places), axis=1)  # NaN comes last
    rows = np.arange(len(norms))
    middle = (ordered[rows, np.maximum(lower, 0)] + ordered[rows, np.minimum(upper, norms.shape[1] - 1)]) / 2
    found: NDArray[np.float64] = np.where(count > 0, middle, np.nan)
    return found
