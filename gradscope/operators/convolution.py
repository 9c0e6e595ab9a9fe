"""Convolutions with a kernel that no layer owns, or that is computed from other parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradscope.contributions import Contribution, Convolution, Dense
from gradscope.contributions.geometry import Geometry
from gradscope.operators.broadcast import along_dimensions
from gradscope.operators.operator import Operator


def _convolution(node: Any, operand: int, grad: Tensor, shape: torch.Size, dim: int) -> Contribution:
    if operand == 2:
        return Dense(grad.flatten(2).sum(2))
    padding = [amount for size in reversed(node._saved_padding) for amount in (size, size)]
    inputs, grads = node._saved_input.to(grad.dtype).conj(), grad
    if node._saved_transposed:
        inputs, grads = grads, inputs
    if any(padding):
        inputs = F.pad(inputs, padding)
    geometry = Geometry(tuple(shape[2:]), tuple(node._saved_stride), tuple(node._saved_dilation), node._saved_groups)
    return Convolution(inputs, grads, shape, geometry)


CONVOLUTION = Operator("convolution", (1, 2), _convolution, along_dimensions)
