"""A recurrent classifier of token sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY = 128


class Recurrent(nn.Module):
    """Embedding, two LSTM layers, and a class from the last output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.first, self.second = (nn.LSTM(width, width, batch_first=True) for _ in range(2))
        self.head = nn.Linear(width, 10)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.second(self.first(self.tokens(ids))[0])
        return self.head(hidden[:, -1])


def lstm(n: int, length: int, width: int) -> tuple[nn.Module, tuple[Tensor], Tensor]:
    """A batch of random texts with classes."""
    return Recurrent(width), (torch.randint(VOCABULARY, (n, length)),), torch.randint(10, (n,))
