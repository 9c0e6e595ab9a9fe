"""Recurrent models: loops inside torch, loops outside, packed sequences."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from families.family import Family, normal, tokens, wave

LENGTHS = torch.tensor([5, 3, 4, 2])


class LanguageModel(Module):
    """Embedding, LSTM, head; optionally one table for both ends."""

    def __init__(self, tied: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.dropout = nn.Dropout(0.2)
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=batch_first)
        self.head = nn.Linear(8, 16)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.dropout(self.embedding(ids)))[0])


def next_tokens(model: Module, batch: Any) -> Tensor:
    found, wanted = model(*batch)[:, :-1], batch[0][:, 1:]
    return F.cross_entropy(found.transpose(1, 2), wanted, reduction="none").mean(1)


def time_first(model: Module, batch: Any) -> Tensor:
    return wave(model(batch[0].t()).transpose(0, 1))


def sequence_first(model: Module, batch: Any) -> Tensor:
    return wave(model(*batch).transpose(0, 1))


class Packed(Module):
    """Sequences of different lengths, packed: rows are not samples."""

    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, sort: bool = False, **settings: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.rnn = kind(8, 6, batch_first=True, **settings)
        self.head = nn.Linear(12 if settings.get("bidirectional") else 6, 4)
        self.sort = sort

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = self.embedding(ids)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


class Encoded(Module):
    """The last state of a packed sequence, to which the layers before the recurrence apply token by token."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 8)
        self.rnn = nn.GRU(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed = packed._replace(data=self.enter(packed.data).tanh())
        return self.head(self.rnn(packed)[1][-1])


class Cells(Module):
    """Cells in a loop, with a state that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(6))
        self.first, self.second = nn.LSTMCell(5, 6), nn.GRUCell(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = s = self.start.expand(x.shape[0], -1)
        for t in range(x.shape[1]):
            h, c = self.first(x[:, t], (h, c))
            s = self.second(h, s)
        return self.head(s)


def sentences() -> tuple[Tensor, Tensor]:
    return tokens(16, 5)()[0], LENGTHS


def sequences() -> tuple[Tensor, Tensor]:
    return normal(5, 8)()[0], LENGTHS


class OnlyOutput(Module):
    def __init__(self, inner: Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def _swapped() -> tuple[Tensor]:
    return (normal(5, 4)()[0].transpose(0, 1).contiguous(),)


FAMILIES = (
    Family("LSTM language model", LanguageModel, tokens(16, 7), next_tokens),
    Family("LSTM language model, tied", partial(LanguageModel, True), tokens(16, 7), next_tokens),
    Family(
        "GRU, bidirectional", lambda: OnlyOutput(nn.GRU(4, 5, 2, bidirectional=True, batch_first=True)), normal(5, 4)
    ),
    Family("LSTM with projection", lambda: OnlyOutput(nn.LSTM(4, 6, proj_size=3, batch_first=True)), normal(5, 4)),
    Family("RNN, sequence first", lambda: OnlyOutput(nn.RNN(4, 5)), _swapped, sequence_first, batch_dim=1),
    Family("LSTM, packed", Packed, sentences),
    Family("LSTM, packed, bidirectional, two layers", partial(Packed, num_layers=2, bidirectional=True), sentences),
    Family("GRU, packed, last state", Encoded, sequences),
    Family("LSTM and GRU cells in a loop", Cells, normal(4, 5)),
)
