"""Handwritten digits, 8 × 8 pixels, and a small convolutional network."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.demo.bundled import bundled, split
from gradscope.demo.task import Problem


class DigitsNet(nn.Module):
    """Two convolutions and a linear head: ``[n, 1, 8, 8]`` to ``[n, 10]`` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.shapes = nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1)
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits."""
        x = F.relu(self.norm(self.edges(images)))
        x = F.relu(self.shapes(x))
        x = F.relu(self.hidden(x.flatten(1)))
        logits: Tensor = self.head(x)
        return logits


def problem() -> Problem:
    """Tell the ten digits apart; a fifth of the 1,797 images is held out."""
    inputs, targets = bundled("digits")
    images = inputs.float().reshape(-1, 1, 8, 8) / 16
    samples, held_out, labels = split(images, targets)
    model = DigitsNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Problem(model, optimizer, F.cross_entropy, samples, partial(_accuracy, held_out, labels))


@torch.no_grad()
def _accuracy(images: Tensor, labels: Tensor, model: nn.Module) -> str:
    share = (model(images).argmax(1) == labels).double().mean().item()
    return f"{share:.1%} of {len(labels)} held-out digits read right"
