"""Plain convolutional networks: BackPACK's 3C3D, and depthwise-separable blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def images(n: int, size: int) -> tuple[tuple[Tensor], Tensor]:
    """Random images and classes."""
    return (torch.randn(n, 3, size, size),), torch.randint(10, (n,))


def c3d3(n: int, size: int, width: int) -> tuple[nn.Module, tuple[Tensor], Tensor]:
    """Three convolutions and three dense layers, as in DeepOBS; ``width`` 32 is theirs: 64, 96 and 128 channels."""
    a, b, c = 2 * width, 3 * width, 4 * width

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    features = nn.Sequential(
        nn.Conv2d(3, a, 5), nn.ReLU(), pool(), nn.Conv2d(a, b, 3), nn.ReLU(), pool(),
        nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), pool(), nn.Flatten(),
    )  # fmt: skip
    inputs, targets = images(n, size)
    flat = features(inputs[0][:1]).shape[1]
    head = [
        nn.Linear(flat, 16 * width),
        nn.ReLU(),
        nn.Linear(16 * width, 8 * width),
        nn.ReLU(),
        nn.Linear(8 * width, 10),
    ]
    return nn.Sequential(*features, *head), inputs, targets


def depthwise(n: int, size: int, width: int, depth: int) -> tuple[nn.Module, tuple[Tensor], Tensor]:
    """Depthwise 3 × 3 and pointwise convolutions with GroupNorm, as in MobileNet, at half the image's size."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
    channels = width
    for block in range(depth):
        wider = channels * (2 if block == depth // 2 else 1)
        stride = 2 if wider > channels else 1
        layers += [
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            nn.GroupNorm(8, channels),
            nn.ReLU(),
            nn.Conv2d(channels, wider, 1, bias=False),
            nn.GroupNorm(8, wider),
            nn.ReLU(),
        ]
        channels = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers), *images(n, size)
