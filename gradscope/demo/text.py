"""The texts of Python's own ``help()``, character by character, and a small GPT."""

from __future__ import annotations

from functools import partial
from pydoc_data import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from gradscope.demo.task import Problem

CONTEXT = 64
WIDTH = 64
HEADS = 4
BLOCKS = 4


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.mixed = nn.Linear(WIDTH, WIDTH)
        self.norm_2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, T, WIDTH]`` to the same."""
        n, length, _ = x.shape
        heads = self.query_key_value(self.norm_1(x)).view(n, length, 3 * HEADS, WIDTH // HEADS).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=1)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mixed(attended.transpose(1, 2).reshape(n, length, WIDTH))
        fed: Tensor = self.down(F.gelu(self.up(self.norm_2(x))))
        return x + fed


class CharacterGPT(nn.Module):
    """A GPT over characters: head tied to the token table, learned positions; ``[n, T]`` to ``[n, T, vocabulary]``."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, characters: Tensor) -> Tensor:
        """Logits of each next character."""
        x = self.tokens(characters) + self.positions(torch.arange(characters.shape[1]))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def problem() -> Problem:
    """Predict the next character; a sample is a stretch of 64, and the last tenth of the text is held out."""
    text = "\n".join(topics.topics.values())
    alphabet = {character: index for index, character in enumerate(sorted(set(text)))}
    encoded = torch.tensor([alphabet[character] for character in text])
    cut = len(encoded) * 9 // 10
    samples = _stretches(encoded[:cut])
    model = CharacterGPT(len(alphabet))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    score = partial(_held_out, _stretches(encoded[cut:]))
    return Problem(model, optimizer, next_character, samples, score)


def next_character(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over all characters of all samples, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _stretches(encoded: Tensor) -> TensorDataset:
    count = (len(encoded) - 1) // CONTEXT
    inputs, targets = (encoded[start : start + count * CONTEXT].view(count, CONTEXT) for start in (0, 1))
    return TensorDataset(inputs, targets)


@torch.no_grad()
def _held_out(samples: TensorDataset, model: nn.Module) -> str:
    inputs, targets = samples[:200]
    return f"{next_character(model(inputs), targets).item():.2f} nats per character of held-out text"
