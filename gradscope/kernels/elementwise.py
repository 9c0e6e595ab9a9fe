"""What is computed of every element of a gradient, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.kernels import loaded
from gradscope.kernels.loaded import check

#: Elements that a thread works on at a time.
PIECE = 1 << 15


def variance_and_signal(
    mean: Tensor, own: Tensor, weight_square: float, samples: int, vector: int = loaded.VECTOR
) -> tuple[Tensor, Tensor]:
    """``n·(own - V₂·mean²)/(1 - V₂)`` and ``(mean² - own)/(1 - V₂)``, elementwise; computed in double precision.

    Args:
        mean: contiguous.
        own: likewise, of as many elements and the same dtype.
        weight_square: V₂.
        samples: n.
        vector: bytes of a vector; by default the widest that this processor has.
    """
    fits = mean.numel() == own.numel() and mean.dtype is own.dtype and mean.is_contiguous() and own.is_contiguous()
    check(fits, "elementwise variance", mean.shape, own.shape)
    variance, signal = torch.empty_like(own), torch.empty_like(own)
    rest = 1 - weight_square
    loaded.compiled().elementwise(
        vector, own.dtype is torch.float64, torch.get_num_threads(), own.numel(), PIECE, mean.data_ptr(),
        own.data_ptr(), variance.data_ptr(), signal.data_ptr(), weight_square, samples / rest, 1 / rest,
    )  # fmt: skip
    return variance, signal


def ratio_sums(below: Tensor, above: Tensor, vector: int = loaded.VECTOR) -> tuple[float, int]:
    """The sum of ``above / below`` over all elements but those where both are zero, and how many these are.

    Args:
        below: contiguous.
        above: likewise, of as many elements and the same dtype.
        vector: bytes of a vector; by default the widest that this processor has.
    """
    fits = below.numel() == above.numel() and below.dtype is above.dtype
    check(fits and below.is_contiguous() and above.is_contiguous(), "ratios", below.shape, above.shape)
    found = torch.empty(-(-below.numel() // PIECE), 2, dtype=torch.float64, device="cpu")
    loaded.compiled().ratios(
        vector, below.dtype is torch.float64, torch.get_num_threads(), below.numel(), PIECE, below.data_ptr(),
        above.data_ptr(), found.data_ptr(),
    )  # fmt: skip
    total, count = found.sum(0).tolist()
    return total, round(count)
