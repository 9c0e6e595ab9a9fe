"""Recurrent modules: whole sequences, single steps in a loop, states given and returned, packed sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.models import both, sequence_first, x
from zoo.problem import Problem, normal, wave

RECURRENT = frozenset({"recurrent"})


class First(Module):
    """Only the outputs of a recurrent module."""

    def __init__(self, inner: Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class States(Module):
    """Starts from states that the sample brings along; all that comes out is used."""

    def __init__(self, inner: nn.RNNBase) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        start = start.transpose(0, 1).contiguous()
        hidden = start[..., : self.inner.proj_size or self.inner.hidden_size]
        output, last = self.inner(x, (hidden, start.sin()) if isinstance(self.inner, nn.LSTM) else hidden)
        last = torch.cat(last, 2) if isinstance(last, tuple) else last
        return output, last.transpose(0, 1)


class LastCell(Module):
    """Only an LSTM's last cell state."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(3, 4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[1][1][-1]


class Again(Module):
    """Reads its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(3, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x)[0])[0]


class TiedLayers(Module):
    """Two layers of one module share what they remember with."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(3, 4, 2, batch_first=True)
        self.inner.weight_hh_l1 = self.inner.weight_hh_l0

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Cells(Module):
    """A cell in a loop: an LSTM's outputs come one from the other, and both are used."""

    def __init__(self, cell: Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state: Any = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return state if isinstance(state, tuple) else (state, x[:, 0])


class Packed(Module):
    """Sequences of different lengths."""

    def __init__(self, inner: nn.RNNBase) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, last = self.inner(packed)
        last = torch.cat(last, 2) if isinstance(last, tuple) else last
        return pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])[0], last.transpose(0, 1)


def lengths() -> tuple[Tensor, Tensor]:
    return normal(5, 3), torch.tensor([3, 5, 1, 4, 5, 2])


def problem(name: str, build: Any, inputs: Any, **options: Any) -> Problem:
    return Problem(name, build, inputs, rules=RECURRENT, **options)


RECURRENT_MODELS = (
    problem("LSTM", lambda: First(nn.LSTM(3, 4, num_layers=2, batch_first=True)), x(5, 3)),
    problem("GRU, both directions", lambda: First(nn.GRU(3, 2, batch_first=True, bidirectional=True)), x(4, 3)),
    problem("RNN, outputs and state", lambda: nn.RNN(3, 4, batch_first=True), x(4, 3), total=lambda m, b: wave(m(*b)[0])),
    problem(
        "LSTM, sequence first", lambda: First(nn.LSTM(3, 2)), lambda: (normal(4, 3).transpose(0, 1),),
        total=sequence_first, batch_dim=1, oracle=False,
    ),
    problem(
        "LSTM, projected, both directions, from states",
        lambda: States(nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True, proj_size=2)),
        lambda: (normal(4, 3), normal(4, 4)), total=both,
    ),
    problem(
        "GRU, two layers without biases, from states", lambda: States(nn.GRU(3, 4, 2, bias=False, batch_first=True)),
        lambda: (normal(4, 3), normal(2, 4)), total=both,
    ),
    problem(
        "RNN, ReLU, both directions, from states",
        lambda: States(nn.RNN(3, 4, 1, nonlinearity="relu", bidirectional=True, batch_first=True)),
        lambda: (normal(4, 3), normal(2, 4)), total=both,
    ),
    problem("LSTM, last cell state", LastCell, x(4, 3)),
    problem("GRU used twice", Again, x(4, 3)),
    problem("LSTM, layers that share a weight", TiedLayers, x(4, 3)),
    problem(
        "LSTM, packed", lambda: Packed(nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True, proj_size=3)), lengths,
        total=both, oracle=False,
    ),
    problem("GRU, packed", lambda: Packed(nn.GRU(3, 4, batch_first=True)), lengths, total=both, oracle=False),
    problem("LSTMCell in a loop", lambda: Cells(nn.LSTMCell(3, 4)), x(3, 3), total=both),
    problem("GRUCell in a loop", lambda: Cells(nn.GRUCell(3, 4)), x(3, 3), total=both),
    problem("RNNCell in a loop", lambda: Cells(nn.RNNCell(3, 4, nonlinearity="relu")), x(3, 3), total=both),
)  # fmt: skip
