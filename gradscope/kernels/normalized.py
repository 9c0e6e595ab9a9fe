"""What samples add to the scale and the shift of a normalisation over the last dimension, from one look at what it read."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.kernels import loaded
from gradscope.kernels.loaded import check


def normalized_sums(
    rows: Tensor, grads: Tensor, epsilon: float, *, centred: bool, vector: int = loaded.VECTOR
) -> tuple[Tensor, Tensor]:
    """``Σₜ grads[i, t] · (rows[i, t] - meanₜ) / √(varianceₜ + ε)`` and ``Σₜ grads[i, t]``, ``[n, d]`` each.

    Args:
        rows: ``[n, T, d]``, with neighbours in memory along the last dimension.
        grads: ``[n, T, d]``, likewise.
        epsilon: added to the variance.
        centred: whether the mean is taken away; without it the variance is the mean square.
        vector: bytes of a vector; by default the widest that this processor has.
    """
    n, positions, size = rows.shape
    fits = rows.shape == grads.shape and rows.dtype is grads.dtype and rows.stride(2) == grads.stride(2) == 1
    check(fits, "normalisation", rows.shape, grads.shape)
    scale, shift = grads.new_empty(2, n, size).unbind()
    loaded.compiled().normalized(
        vector, rows.dtype is torch.float64, max(1, min(n, torch.get_num_threads())), rows.data_ptr(), grads.data_ptr(),
        scale.data_ptr(), shift.data_ptr(), epsilon, n, positions, size, rows.stride(0), rows.stride(1), grads.stride(0),
        grads.stride(1), centred,
    )  # fmt: skip
    return scale, shift
