"""Residual networks with GroupNorm in the place of BatchNorm."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.speed.models.convnets import images


def normalization(channels: int) -> nn.Module:
    """Groups of at least two channels, 32 groups at most."""
    return nn.GroupNorm(min(32, channels // 2), channels)


def convolution(a: int, b: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution and normalisation."""
    return [nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False), normalization(b)]


class Residual(nn.Module):
    """A path beside the identity, or beside a projection where shapes differ."""

    def __init__(self, path: list[nn.Module], a: int, b: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(*path)
        self.skip = nn.Sequential(*convolution(a, b, 1, stride)) if stride > 1 or a != b else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.path(x) + self.skip(x))


def basic(a: int, width: int, stride: int) -> Residual:
    """Two 3 × 3 convolutions."""
    return Residual([*convolution(a, width, 3, stride), nn.ReLU(), *convolution(width, width, 3)], a, width, stride)


def bottleneck(a: int, width: int, stride: int) -> Residual:
    """1 × 1, 3 × 3, 1 × 1, to four times the width."""
    path = [*convolution(a, width, 1), nn.ReLU(), *convolution(width, width, 3, stride), nn.ReLU()]
    return Residual([*path, *convolution(width, 4 * width, 1)], a, 4 * width, stride)


def resnet18(n: int, size: int, width: int) -> tuple[nn.Module, tuple[Tensor], Tensor]:
    """ResNet-18 for small images: a 3 × 3 stem that keeps their size."""
    layers: list[nn.Module] = [*convolution(3, width, 3), nn.ReLU()]
    channels = width
    for stage in range(4):
        for block in range(2):
            wide = width * 2**stage
            layers.append(basic(channels, wide, 2 if stage and not block else 1))
            channels = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)), *images(n, size)


def resnet50(n: int, size: int, width: int) -> tuple[nn.Module, tuple[Tensor], Tensor]:
    """ResNet-50, with ten classes."""
    layers: list[nn.Module] = [*convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(bottleneck(channels, width * 2**stage, 2 if stage and not block else 1))
            channels = 4 * width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)), *images(n, size)
