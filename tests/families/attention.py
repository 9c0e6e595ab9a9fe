"""Attention as torch ships it, with dropout, in both batch layouts."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from families.family import Family, N, normal, wave


def _sequence_first(*shape: int) -> Any:
    return lambda: tuple(x.transpose(0, 1).contiguous() for x in normal(*shape)())


def sequence_first(model: Module, batch: Any) -> Tensor:
    return wave(model(*batch).transpose(0, 1))


class Itself(Module):
    """A sequence that attends to itself."""

    def __init__(self, batch_first: bool, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, dropout=0.2, **settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Across(Module):
    """Queries that attend to keys and values of other sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True, dropout=0.2, add_bias_kv=True)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attention(q, k, v)[0]


class Translator(Module):
    """Encoder and decoder with a learnt table of positions."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 5, 8) if batch_first else torch.randn(5, 1, 8))
        self.inner = nn.Transformer(8, 2, 1, 1, 16, dropout=0.1, batch_first=batch_first)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.inner(x + self.positions, y)


def _encoder(batch_first: bool, norm_first: bool = False) -> Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=batch_first, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Classifier(Module):
    """A class token in front of the sequence, a mask over its end, a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.encoder = _encoder(True, True)
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        hidden = torch.arange(x.shape[1]) >= torch.tensor([6, 4, 5, 3]).unsqueeze(1)
        return self.head(self.encoder(x, src_key_padding_mask=hidden)[:, 0]) / self.temperature.exp()


def _memory() -> tuple[Tensor, Tensor]:
    return normal(5, 8)()[0], normal(4, 8)()[0]


def _memory_sequence_first() -> tuple[Tensor, ...]:
    return tuple(x.transpose(0, 1).contiguous() for x in _memory())


FAMILIES = (
    Family("MultiheadAttention, batch first", partial(Itself, True), normal(5, 8)),
    Family(
        "MultiheadAttention, sequence first",
        partial(Itself, False),
        _sequence_first(5, 8),
        sequence_first,
        batch_dim=1,
    ),
    Family(
        "MultiheadAttention across", Across, lambda: (torch.randn(N, 3, 8), torch.randn(N, 5, 6), torch.randn(N, 5, 5))
    ),
    Family("TransformerEncoder, batch first", partial(_encoder, True), normal(5, 8)),
    Family(
        "TransformerEncoder, sequence first",
        partial(_encoder, False),
        _sequence_first(5, 8),
        sequence_first,
        batch_dim=1,
    ),
    Family("Transformer with positions", Translator, _memory),
    Family(
        "Transformer with positions, sequence first",
        partial(Translator, False),
        _memory_sequence_first,
        sequence_first,
        batch_dim=1,
    ),
    Family("class token, mask, temperature", Classifier, normal(5, 8)),
)
