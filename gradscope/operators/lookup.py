"""Tables that are read by index, outside of any layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradscope.contributions import Scatter
from gradscope.operators.broadcast import along_dimensions
from gradscope.operators.operator import Operator


def _embedding(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Scatter:
    if node._saved_scale_grad_by_freq:
        raise ValueError("scale_grad_by_freq makes rows depend on the whole batch")
    ids = node._saved_indices.reshape(grad.shape[0], -1)
    grads = grad.reshape(*ids.shape, -1)
    padding = node._saved_padding_idx
    # A missing padding index is stored as -1, wrapped to an unsigned number in some releases.
    if 0 <= padding < shape[0]:
        grads = grads * (ids != padding).unsqueeze(-1)
    return Scatter(ids, grads, shape)


def _index(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Scatter:
    # Read once: see capture/saved.py.
    saved = node._saved_indices
    indices = [index for index in saved if index is not None]
    if len(indices) != 1 or saved[0] is None or len(shape) != 2 or indices[0].dtype == torch.bool:
        raise ValueError("only a table's first dimension is read by index here")
    ids = indices[0].reshape(grad.shape[0], -1) % shape[0]
    return Scatter(ids, grad.reshape(*ids.shape, -1), shape)


EMBEDDING = Operator("embedding", (0,), _embedding, along_dimensions)
INDEX = Operator("index", (0,), _index, along_dimensions)
