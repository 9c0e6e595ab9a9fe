"""Elementwise operators whose parameter is broadcast over the samples, and the operators that broadcast it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradscope.contributions import Dense
from gradscope.operators.operator import Operator


def summed_to(product: Tensor, shape: torch.Size, dim: int) -> Tensor:
    """Each row's share of a broadcast operand's gradient, ``[R, *shape]``.

    Args:
        product: what reached every element of the output.
        shape: the operand's, which has no size of its own along ``dim``.
        dim: the output's dimension that counts the rows.
    """
    padded = (1,) * (product.dim() - len(shape)) + tuple(shape)
    sizes = zip(product.shape, padded, strict=True)
    over = [k for k, (size, own) in enumerate(sizes) if own == 1 and size != 1 and k != dim]
    if over:
        product = product.sum(over, keepdim=True)
    return product.movedim(dim, 0).reshape(product.shape[dim], *shape)


def along_dimensions(grad: Tensor, operand: int, dims: tuple[int, ...]) -> Tensor:
    """Rows lie along dimensions that the operand was broadcast along."""
    return grad.movedim(dims, tuple(range(len(dims))))


def _broadcast(name: str, operands: tuple[int, ...], factor: Callable[[Any, int, Tensor], Tensor]) -> Operator:
    def describe(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Dense:
        return Dense(summed_to(factor(node, operand, grad), shape, dim))

    return Operator(name, operands, describe, along_dimensions)


def _add(node: Any, operand: int, grad: Tensor) -> Tensor:
    return grad if operand == 0 or node._saved_alpha == 1 else grad * node._saved_alpha


def _subtract(node: Any, operand: int, grad: Tensor) -> Tensor:
    return grad if operand == 0 else -_add(node, operand, grad)


def _multiply(node: Any, operand: int, grad: Tensor) -> Tensor:
    other = node._saved_other if operand == 0 else node._saved_self
    return grad * (other.conj() if isinstance(other, Tensor) else other)


def _divide(node: Any, operand: int, grad: Tensor) -> Tensor:
    other = node._saved_other
    if operand == 0:
        return grad / (other.conj() if isinstance(other, Tensor) else other)
    slope: Tensor = node._saved_self / (other * other)
    return -grad * slope.conj()


def _same(node: Any, operand: int, grad: Tensor) -> Tensor:
    return grad


def _repeat(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Dense:
    """Copies along all other dimensions are summed."""
    padded = (1,) * (grad.dim() - len(shape)) + tuple(shape)
    split = [size for pair in zip(node._saved_repeats, padded, strict=True) for size in pair]
    copies = grad.reshape(split)
    over = [2 * k for k in range(grad.dim()) if k != dim]
    rows = copies.sum(over) if over else copies
    # What is left are the copies along ``dim`` and the operand's own dimensions, in their order.
    return Dense(rows.movedim(dim, 0).reshape(-1, *shape))


ADD = _broadcast("add", (0, 1), _add)
SUBTRACT = _broadcast("subtract", (0, 1), _subtract)
MULTIPLY = _broadcast("multiply", (0, 1), _multiply)
DIVIDE = _broadcast("divide", (0, 1), _divide)
EXPAND = _broadcast("expand", (0,), _same)
REPEAT = Operator("repeat", (0,), _repeat, along_dimensions)
