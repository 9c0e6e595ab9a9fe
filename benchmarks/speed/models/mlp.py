"""A multi-layer perceptron on pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mlp(n: int, width: int, depth: int) -> tuple[nn.Module, tuple[Tensor], Tensor]:
    """Linear layers with ReLU between, ten classes."""
    layers: list[nn.Module] = []
    wide = 784
    for _ in range(depth):
        layers += [nn.Linear(wide, width), nn.ReLU()]
        wide = width
    return nn.Sequential(*layers, nn.Linear(wide, 10)), (torch.randn(n, 784),), torch.randint(10, (n,))
