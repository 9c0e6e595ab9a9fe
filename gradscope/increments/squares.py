"""The squared norm of a gradient at the price of reading it once."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.contributions.precision import squared_norm


def square(grad: Tensor) -> Tensor:
    """``‖grad‖²``, float64, zero-dimensional, on its device."""
    if grad.layout is torch.strided and not grad.is_contiguous():
        # From the farthest dimension to the nearest in memory, so that flattening copies nothing.
        grad = grad.permute(sorted(range(grad.dim()), key=grad.stride, reverse=True))
    return squared_norm(grad)
