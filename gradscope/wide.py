"""The widest floating point numbers that a device knows: sums are made in them.

That is double precision, but for GPUs of Apple's and some of Intel's, which know single precision at most.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
def knows_float64(device: torch.device) -> bool:
    """Whether a device computes in double precision; found out by asking it, once."""
    if device.type in ("cpu", "cuda", "meta"):
        return True
    try:
        torch.ones((), dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return False
    return True


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float64, or float32 where the tensor's device knows no more; their complex twins for complex tensors."""
    if tensor.is_cpu or tensor.is_cuda or knows_float64(tensor.device):
        return torch.complex128 if tensor.is_complex() else torch.float64
    return torch.complex64 if tensor.is_complex() else torch.float32


def widen(tensor: Tensor) -> Tensor:
    """The tensor in its device's widest dtype, real or complex."""
    return tensor.to(wide_dtype(tensor))
