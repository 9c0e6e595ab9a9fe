"""Residual networks and what surrounds convolutions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn import functional as F

from families.family import Family, N, normal, wave

Norm = Callable[[int], Module]


class Block(Module):
    """Two convolutions around which the input passes."""

    def __init__(self, before: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.short: Module = nn.Identity()
        if stride != 1 or before != width:
            self.short = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), norm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += self.short(x)
        return self.relu(y)


class ResNet(Module):
    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), norm(8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Block(8, 8, 1, norm), Block(8, 12, 2, norm))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


def settled(build: Callable[[], Module]) -> Callable[[], Module]:
    """The model in eval mode, with running statistics that are not those of its birth."""

    def make() -> Module:
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        return model.eval()

    return make


def group(width: int) -> Module:
    return nn.GroupNorm(4, width)


class Separable(Module):
    """Depthwise, grouped and transposed convolutions, in the channels-last memory format."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 8, 3, padding=1, groups=4, padding_mode="reflect")
        self.grouped = nn.Conv2d(8, 6, 3, groups=2, dilation=2, padding="same")
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, output_padding=1)
        self.head = nn.Conv2d(4, 2, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.head(self.up(self.grouped(self.depthwise(x).tanh()).tanh()).tanh())


class Standardised(nn.Conv2d):
    """A convolution whose kernel is standardised before it is used."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        scale = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (scale + 1e-5), self.bias, self.stride, self.padding)


class Gan(Module):
    """Generator and discriminator as one model; a step of the generator."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(6, 8, 4), nn.ReLU(), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 4), nn.Flatten(), nn.Linear(8, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.discriminator(self.generator(z[:, :, None, None]))


def fooled(model: Module, batch: Any) -> Tensor:
    return F.softplus(-model(*batch)).squeeze(1)


def both_sides(model: Module, batch: Any) -> Tensor:
    """A discriminator's loss, on real and generated samples in one batch."""
    score = model(torch.cat(batch)).squeeze(1)
    return F.softplus(torch.cat([-score[: N // 2], score[N // 2 :]]))


class UNet(Module):
    """Skip connections, upsampling, squeeze and excitation, a time embedding: what diffusion models are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8))
        self.enter, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.down, self.middle = nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.squeeze = nn.Conv2d(8, 8, 1)
        self.leave = nn.Conv2d(16, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.full((1, 8, 1, 1), 0.3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        wave = torch.cat([(t[:, None] * torch.arange(1, 5)).sin(), (t[:, None] * torch.arange(1, 5)).cos()], 1)
        h = self.enter(x)
        low = F.silu(self.norm(self.down(h) + self.time(wave)[:, :, None, None]))
        low = low + self.gain * self.middle(low)
        low = low * self.squeeze(low.mean((2, 3), keepdim=True)).sigmoid()
        return self.leave(torch.cat([h, F.interpolate(low, scale_factor=2)], 1))


def noised() -> tuple[Tensor, Tensor]:
    return torch.randn(N, 3, 6, 6), torch.rand(N)


def halves() -> tuple[Tensor, Tensor]:
    return 0.5 + torch.randn(N // 2, 3, 8, 8), torch.randn(N // 2, 3, 8, 8)


def _discriminator() -> Module:
    return Gan().discriminator


FAMILIES = (
    Family("ResNet, GroupNorm", partial(ResNet, group), normal(3, 8, 8)),
    Family("ResNet, BatchNorm (eval)", settled(partial(ResNet, nn.BatchNorm2d)), normal(3, 8, 8)),
    Family("ResNet, BatchNorm (training)", partial(ResNet, nn.BatchNorm2d), normal(3, 8, 8), mixes=True),
    Family("convolutions: depthwise, grouped, channels last", Separable, normal(4, 8, 8)),
    Family(
        "weight standardisation",
        lambda: nn.Sequential(Standardised(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)),
        normal(3, 6, 6),
    ),
    Family("U-Net with a time embedding", UNet, noised),
    Family("GAN, generator's step", Gan, normal(6), fooled),
    Family("GAN, discriminator's step", _discriminator, halves, both_sides),
)
__all__ = ["FAMILIES", "wave"]
