"""Whether parts make up a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Relative difference below which two results of the same computation, by dtype, count as equal.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def residual(parts: list[dict[str, Tensor]], weights: Sequence[float], whole: dict[str, Tensor]) -> float:
    """Largest over the parameters of ``‖Σ aᵢpᵢ - whole‖``, in units of what rounding may explain."""
    worst = 0.0
    top = sum(float(w.abs().square().sum()) for w in whole.values()) ** 0.5
    for name, target in whole.items():
        total = sum((a * p[name] for a, p in zip(weights, parts, strict=True)), torch.zeros_like(target))
        size = sum(abs(a) * float(torch.linalg.vector_norm(p[name])) for a, p in zip(weights, parts, strict=True))
        # A structurally zero gradient is rounding noise: the floor is relative to the whole gradient.
        scale = max(float(torch.linalg.vector_norm(target)), size, 1e-5 * top)
        error = float(torch.linalg.vector_norm(total - target))
        if error > 0:
            worst = max(worst, error / (TOLERANCE.get(target.dtype, 2e-4) * scale))
    return worst
