"""Matrix products with a parameter: what ``F.linear``, ``@`` and ``einsum`` come down to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscope.contributions import Contribution, Dense, Outer
from gradscope.operators.operator import Operator


def _rows(grad: Tensor, operand: int, dims: tuple[int, ...]) -> Tensor:
    """Rows of the output, or its columns where the parameter is the first factor."""
    grad = _matrix(grad)
    return grad if operand != 0 else grad.T


def _matrix(tensor: Tensor) -> Tensor:
    if tensor.dim() == 3:
        if tensor.shape[0] != 1:
            raise ValueError("a batched product has a matrix for each sample")
        return tensor[0]
    return tensor


def outer(inputs: Tensor, grads: Tensor, shape: torch.Size) -> Outer:
    """``gradᵀ input`` of each row, ``[R]`` of them."""
    return Outer(inputs[:, None, None], grads[:, None, None], shape)


def _product(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Contribution:
    """``dB = Aᵀ G`` for the second factor, ``dA = G Bᵀ`` for the first; rows are those of ``_rows``."""
    grad = _matrix(grad)
    if operand == 1:
        return outer(grad, _matrix(node._saved_self).conj().to(grad.dtype), shape)
    return outer(_matrix(node._saved_mat2).T.conj().to(grad.dtype), grad.T, shape)


def _addmm_rows(grad: Tensor, operand: int, dims: tuple[int, ...]) -> Tensor:
    return grad.T if operand == 1 else grad


def _addmm(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Contribution:
    if operand == 0:
        scaled = grad if node._saved_beta == 1 else grad * node._saved_beta
        return Dense(scaled.reshape(grad.shape[0], *shape))
    grad = grad if node._saved_alpha == 1 else grad * node._saved_alpha
    if operand == 2:
        return outer(grad, node._saved_mat1.conj().to(grad.dtype), shape)
    return outer(node._saved_mat2.T.conj().to(grad.dtype), grad.T, shape)


MM = Operator("matrix product", (0, 1), _product, _rows)
ADDMM = Operator("matrix product", (0, 1, 2), _addmm, _addmm_rows)
