"""Normalisation by a function instead of a layer: ``F.layer_norm`` and ``F.group_norm``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscope.contributions import Dense
from gradscope.contributions.precision import working
from gradscope.operators.broadcast import along_dimensions, summed_to
from gradscope.operators.operator import Operator


def _normalized(rows: Tensor, mean: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
    """``g · (x - mean) · scale``, with the numbers that the forward has saved."""
    return (working(rows) - mean).mul_(scale).mul_(grad)


def _layer_norm(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Dense:
    """Scale and shift over the last dimensions."""
    grad = working(grad)
    if operand == 1:
        grad = _normalized(node._saved_input, node._saved_result1, node._saved_result2, grad)
    return Dense(summed_to(grad, shape, dim))


def _group_norm(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Dense:
    """Scale and shift over dimension 1."""
    if dim != 0:
        raise ValueError("samples lie along the channels that it normalises")
    grad = working(grad)
    if operand == 1:
        mean, scale = node._saved_result1, node._saved_result2
        groups = (grad.shape[0], mean.shape[1], -1)
        rows = node._saved_input.reshape(groups)
        grad = _normalized(rows, mean.unsqueeze(2), scale.unsqueeze(2), grad.reshape(groups)).reshape(grad.shape)
    return Dense(grad.reshape(*grad.shape[:2], -1).sum(2).reshape(grad.shape[0], *shape))


LAYER_NORM = Operator("layer norm", (1, 2), _layer_norm, along_dimensions)
GROUP_NORM = Operator("group norm", (1, 2), _group_norm, along_dimensions)
