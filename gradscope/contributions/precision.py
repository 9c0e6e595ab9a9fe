"""Squares and sums that keep their digits."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.wide import widen

#: float32 sums over longer rows lose digits (5e-4 at 8 M elements); blocks are added in float64.
BLOCK = 1024


def working(tensor: Tensor) -> Tensor:
    """The tensor in a dtype whose squares neither vanish nor overflow early: half precisions become float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def row_squares(tensor: Tensor) -> Tensor:
    """Squared norm of each row ``tensor[i]``, float64 ``[n]``."""
    rows = working(tensor).reshape(tensor.shape[0], -1)
    length = rows.shape[1]
    if length <= BLOCK:
        short: Tensor = torch.linalg.vector_norm(rows, dim=1)
        return widen(short).square()
    whole = length // BLOCK * BLOCK
    blocks = rows[:, :whole].reshape(rows.shape[0], -1, BLOCK)
    squares: Tensor = widen(torch.linalg.vector_norm(blocks, dim=2)).square().sum(1)
    if whole < length:
        squares = squares + widen(torch.linalg.vector_norm(rows[:, whole:], dim=1)).square()
    return squares


def squared_norm(tensor: Tensor) -> Tensor:
    """Squared norm of a whole tensor, float64, zero-dimensional; sparse gradients count their values once coalesced."""
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce().values()
    flat = working(tensor).reshape(-1)
    if flat.is_complex():
        return row_squares(flat.unsqueeze(0))[0]
    length = flat.shape[0]
    if length <= BLOCK * BLOCK // 16:
        # Short enough for one product to keep its digits.
        return widen(flat.dot(flat))
    whole = length - length % BLOCK
    lengths = widen(torch.linalg.vector_norm(flat[:whole].view(-1, BLOCK), dim=1))
    squares: Tensor = lengths.dot(lengths)
    return squares if whole == length else squares + widen(flat[whole:].dot(flat[whole:]))
