"""The samples whose gradients stand out."""

from __future__ import annotations

import torch
from torch import Tensor

#: A sample stands out from this multiple of the median on; Gaussian gradients of ten elements or more stay below it.
SMALLEST_RATIO = 2.0
MOST_OUTLIERS = 5


def outliers(norms: Tensor) -> list[tuple[tuple[int, float], ...]]:
    """Samples whose ``‖gᵢ‖`` is at least twice the median, at most five per row.

    Args:
        norms: ``‖gᵢ‖``, ``[U, n]``: one row per layer, say; NaN where a sample was not measured.

    Returns:
        Per row (index, ``‖gᵢ‖`` over the median of the measured samples), largest first. Empty where the median is
        zero: a ratio to it means nothing.
    """
    if norms.shape[1] == 0:
        return [() for _ in range(norms.shape[0])]
    median = _median(norms)
    ratios = norms / torch.where(median > 0, median, torch.nan)
    ratios = torch.where(ratios >= SMALLEST_RATIO, ratios, 0.0)  # NaN compares false
    largest, indices = ratios.topk(min(MOST_OUTLIERS, norms.shape[1]), dim=1)
    rows = zip(indices.tolist(), largest.tolist(), strict=True)
    return [tuple((i, r) for i, r in zip(*row, strict=True) if r > 0) for row in rows]


def _median(norms: Tensor) -> Tensor:
    """Median of each row's numbers, ``[U, 1]``: the middle of the two middle ones where their count is even."""
    ordered = norms.sort(dim=1).values  # NaN comes last
    count = (~norms.isnan()).sum(1, keepdim=True)
    lower = ordered.gather(1, ((count - 1) // 2).clamp(min=0))
    upper = ordered.gather(1, (count // 2).clamp(max=norms.shape[1] - 1))
    return torch.where(count > 0, (lower + upper) / 2, torch.nan)
