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
) -> Tensor | None:  # fmt: skip
    """``‖M‖²`` of each matrix, and ``leftᵀ M right``, float64 ``[2, m]``; None where the kernel cannot read them.

    Args:
        matrices: of any shape with as many numbers as ``left`` times ``right`` has; read are contiguous ones of one dtype.
        lefts: a vector for each one's first dimension.
        rights: one for all the others, or a single one beside a vector.
        copies: memory for the same numbers again, contiguous; or None.
        vector: bytes of a vector; by default the widest that this processor has.

    Raises:
        ValueError: the rest does not fit them.
    """
    found = torch.empty(2, len(matrices), dtype=torch.float64, device="cpu")
    threads, run = torch.get_num_threads(), loaded.compiled().readings
    return found if run(vector, threads, PIECE, matrices, lefts, rights, copies, found.data_ptr()) else None


def rows_read(
    first: Tensor, along_first: Tensor, second: Tensor, along_second: Tensor,
    memory: Tensor, place: int, squares: tuple[Tensor, Tensor] | None = None, vector: int = loaded.VECTOR,
) -> bool:  # fmt: skip
    """``‖firstᵢ‖``, ``⟨firstᵢ, ·⟩``, ``‖secondᵢ‖``, ``⟨secondᵢ, ·⟩``, in one place of a memory.

    Args:
        first: ``[n, d]``, with neighbours in memory along the last dimension.
        along_first: ``[d]``.
        second: ``[n, p]``, likewise.
        along_second: ``[p]``.
        memory: for such numbers, in the rows' dtype, contiguous ``[places, 4, n]``.
        place: where these go.
        squares: memory for every number's square, of both, contiguous; or None.
        vector: bytes of a vector; by default the widest that this processor has.

    Returns:
        Whether the kernel can read these rows; nothing was done where it cannot.

    Raises:
        ValueError: the rest does not fit them.
    """
    threads, run = torch.get_num_threads(), loaded.compiled().rows
    done: bool = run(vector, threads, PIECE, memory, place, first, along_first, second, along_second, squares)
    return done
