"""A small GPT.

Positions are an input with a row per sample, and the head is not tied to the embedding: so that tools which know neither
broadcasting nor tied weights give right answers too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 256


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each beside the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.between = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class Gpt(nn.Module):
    """Predicts the next of 256 symbols."""

    def __init__(self, length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(ids) + self.places(places))))


def gpt(n: int, length: int, width: int, depth: int, heads: int) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    """A batch of random texts."""
    ids = torch.randint(VOCABULARY, (n, length + 1))
    places = torch.arange(length).repeat(n, 1)
    return Gpt(length, width, depth, heads), (ids[:, :-1].contiguous(), places), ids[:, 1:].contiguous()
