"""Lengths and projections of what lies in memory, read once for both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.kernels import loaded

#: Numbers that one thread reads at a time, about.
PIECE = 1 << 15


def readings(
    matrices: Sequence[Tensor], lefts: Sequence[Tensor], rights: Sequence[Tensor],
    copies: Sequence[Tensor] | None = None, vector: int = loaded.VECTOR,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``‖M‖²`` of each matrix, float64 ``[m]``, and ``leftᵀ M right``, ``[m, 1]``.

    Args:
        matrices: contiguous, of one dtype, none empty; of any shape with as many numbers as ``left`` times ``right`` has.
        lefts: a vector for each one's first dimension.
        rights: one for all the others, or a single one beside a vector.
        copies: memory for the same numbers again, contiguous; or None.
        vector: bytes of a vector; by default the widest that this processor has.

    Raises:
        ValueError: they do not fit together.
    """
    count = len(matrices)
    squares, along = torch.empty(count, dtype=torch.float64), torch.empty(count, 1, dtype=torch.float64)
    loaded.compiled().readings(
        vector, torch.get_num_threads(), PIECE, matrices, lefts, rights, copies, squares.data_ptr(), along.data_ptr()
    )
    return squares, along


def rows_read(
    first: Tensor, along_first: Tensor, second: Tensor, along_second: Tensor,
    squares: tuple[Tensor, Tensor] | None = None, vector: int = loaded.VECTOR,
) -> Tensor:  # fmt: skip
    """``‖firstᵢ‖``, ``⟨firstᵢ, ·⟩``, ``‖secondᵢ‖``, ``⟨secondᵢ, ·⟩``, in the rows' dtype ``[4, n]``.

    Args:
        first: ``[n, d]``, with neighbours in memory along the last dimension.
        along_first: ``[d]``.
        second: ``[n, p]``, likewise.
        along_second: ``[p]``.
        squares: memory for every number's square, of both, contiguous; or None.
        vector: bytes of a vector; by default the widest that this processor has.

    Raises:
        ValueError: they do not fit together.
    """
    found = torch.empty(4, first.shape[0], dtype=first.dtype)
    threads = torch.get_num_threads()
    loaded.compiled().rows(vector, threads, PIECE, found, first, along_first, second, along_second, squares)
    return found
