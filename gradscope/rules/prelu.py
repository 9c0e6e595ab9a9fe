"""PReLU: the slope's gradient is the output gradient times the input's negative part."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module

from gradscope.contributions import Contribution, Dense
from gradscope.contributions.precision import working
from gradscope.rules.rule import Rule, owns


def describe_prelu(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """Per channel (dimension 1), or one slope for all."""
    n = grad.shape[0]
    product = working(grad) * working(inputs[0]).clamp(max=0)
    slopes = module.num_parameters
    rows = product.reshape(n, 1, -1) if slopes == 1 else product.reshape(n, product.shape[1], -1)
    return {"weight": Dense(rows.sum(2))}


PRELU = Rule("PReLU", describe_prelu, refuse=owns("weight"))
