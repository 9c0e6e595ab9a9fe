"""Matrix products with a parameter, batched or not: what ``F.linear``, ``@`` and ``einsum`` come down to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscope.contributions import Contribution, Dense, Outer
from gradscope.operators.broadcast import along_dimensions, summed_to
from gradscope.operators.operator import Operator


def outer(inputs: Tensor, grads: Tensor, shape: torch.Size) -> Outer:
    """``gradᵀ input`` of each row, for each matrix of a batched product on its own.

    Args:
        inputs: ``[R, d]`` or ``[R, b, d]``.
        grads: ``[R, p]`` or ``[R, b, p]``.
        shape: ``[p, d]`` or ``[b, p, d]``.
    """
    if inputs.dim() == 2:
        inputs, grads = inputs.unsqueeze(1), grads.unsqueeze(1)
    return Outer(inputs.unsqueeze(2), grads.unsqueeze(2), torch.Size((shape[:-1].numel(), shape[-1])))


def _second(grad: Tensor, first: Tensor, shape: torch.Size) -> Outer:
    """``dB = Aᵀ G``: rows are those of A and G."""
    rows = first.conj().to(grad.dtype).movedim(-2, 0)
    return outer(grad.movedim(-2, 0), rows, shape)


def _first(grad: Tensor, second: Tensor, shape: torch.Size) -> Outer:
    """``dA = G Bᵀ``: rows are the columns of G and B."""
    columns = second.conj().to(grad.dtype).movedim(-1, 0)
    return outer(columns, grad.movedim(-1, 0), shape)


def _product(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Contribution:
    if operand == 1:
        return _second(grad, node._saved_self, shape)
    return _first(grad, node._saved_mat2, shape)


def _addmm(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Contribution:
    if operand == 0:
        scaled = grad if node._saved_beta == 1 else grad * node._saved_beta
        return Dense(summed_to(scaled, shape, dim))
    grad = grad if node._saved_alpha == 1 else grad * node._saved_alpha
    if operand == 2:
        return _second(grad, node._saved_mat1, shape)
    return _first(grad, node._saved_mat2, shape)


MM = Operator("matrix product", (0, 1), _product, along_dimensions)
ADDMM = Operator("matrix product", (0, 1, 2), _addmm, along_dimensions)
