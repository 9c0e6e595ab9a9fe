"""Lengths and projections of what lies in memory, read once for both."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gradscope.kernels import loaded
from gradscope.kernels.loaded import check

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
    """
    dtype, sizes = matrices[0].dtype, []
    addresses: list[int] = []
    for matrix, left, right in zip(matrices, lefts, rights, strict=True):
        rows, columns = left.numel(), right.numel()
        plain = matrix.is_contiguous() and left.is_contiguous() and right.is_contiguous()
        if matrix.numel() != rows * columns or not (plain and matrix.dtype is left.dtype is right.dtype is dtype):
            check(False, "readings", matrix.shape, left.shape, right.shape)
        if columns == 1:
            # A vector is one row: the two directions change places.
            rows, columns, left, right = columns, rows, right, left
        sizes.append((rows, columns))
        addresses += (matrix.data_ptr(), left.data_ptr(), right.data_ptr(), 0)
    for which, (matrix, copy) in enumerate(zip(matrices, copies or (), strict=copies is not None)):
        if copy.numel() != matrix.numel() or copy.dtype is not dtype or not copy.is_contiguous():
            check(False, "readings", matrix.shape, copy.shape)
        addresses[4 * which + 3] = copy.data_ptr()
    plan, pieces = _plan(tuple(sizes))
    count = len(matrices)
    squares, along, scratch = (torch.empty(size, dtype=torch.float64) for size in ((count,), (count, 1), (pieces, 2)))
    loaded.compiled().readings(
        vector, dtype is torch.float64, min(pieces, torch.get_num_threads()), plan,
        struct.pack(f"{len(addresses)}n", *addresses), squares.data_ptr(), along.data_ptr(), scratch.data_ptr(),
    )  # fmt: skip
    return squares, along


@lru_cache(maxsize=64)
def _plan(sizes: tuple[tuple[int, int], ...]) -> tuple[bytes, int]:
    """What the kernel is told of rows and columns, and the pieces that threads take."""
    numbers: list[int] = []
    end = 0
    for rows, columns in sizes:
        height = max(1, PIECE // columns)
        begin, end = end, end + -(-rows // height)
        numbers += (rows, columns, height, begin, end)
    return struct.pack(f"{len(numbers)}n", *numbers), end


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
    """
    (n, d), (count, p) = first.shape, second.shape
    sizes = n == count and d == along_first.shape[0] and p == along_second.shape[0]
    if not sizes or first.stride(1) != 1 or second.stride(1) != 1:
        check(False, "rows", first.shape, along_first.shape, second.shape, along_second.shape)
    if squares is not None:
        for rows, memory in zip((first, second), squares, strict=True):
            fits = memory.shape == rows.shape and memory.dtype is rows.dtype and memory.is_contiguous()
            check(fits, "rows", rows.shape, memory.shape)
    of_first, of_second = (0, 0) if squares is None else (squares[0].data_ptr(), squares[1].data_ptr())
    found = torch.empty(4, n, dtype=first.dtype)
    threads = min(n, torch.get_num_threads()) if n * (d + p) >= 2 * PIECE else 1
    loaded.compiled().rows(
        vector, first.dtype is torch.float64, threads, found.data_ptr(), n, first.data_ptr(), along_first.data_ptr(),
        d, first.stride(0), of_first, second.data_ptr(), along_second.data_ptr(), p, second.stride(0), of_second,
    )  # fmt: skip
    return found
