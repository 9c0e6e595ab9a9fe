"""Which recurrent modules have a closed form, and how they are built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import Module

from gradscope.rules.recurrent.elman import back_through_relu, back_through_tanh
from gradscope.rules.recurrent.gru import back_through_gru
from gradscope.rules.recurrent.lstm import back_through_lstm
from gradscope.rules.recurrent.run import Returned, Run

_SEQUENCES = (nn.LSTM, nn.GRU, nn.RNN)
_CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


@dataclass(frozen=True, slots=True)
class Form:
    """How a recurrent module is built.

    Attributes:
        back: goes back through one layer in one direction.
        kernel: torch's own forward of one layer, in both directions if it has them.
        states: how many states each layer has: two for an LSTM.
        suffixes: per layer and direction, what the parameters' names end in.
        names: the parameters' names without suffix, in torch's order.
        batch_dim: where the samples lie in input and output.
        sequence: whether it reads sequences; a cell reads one step.
        fused: whether the CPU runs it as one operator, which keeps in single precision what lies between half precisions.
    """

    back: Callable[[Run], Returned]
    kernel: Callable[..., Any]
    states: int
    suffixes: tuple[tuple[str, ...], ...]
    names: tuple[str, ...]
    batch_dim: int
    sequence: bool
    fused: bool = False

    @property
    def all_names(self) -> list[str]:
        """All parameters' names, in torch's order."""
        return [f"{name}{end}" for layer in self.suffixes for end in layer for name in self.names]


_KINDS: dict[str, tuple[Callable[[Run], Returned], Callable[..., Any], int]] = {
    "LSTM": (back_through_lstm, torch.lstm, 2),
    "GRU": (back_through_gru, torch.gru, 1),
    "RNN_TANH": (back_through_tanh, torch.rnn_tanh, 1),
    "RNN_RELU": (back_through_relu, torch.rnn_relu, 1),
}


def find_form(module: Module) -> Form | None:
    """The module's form; None where it has none of its own, computes its weights, or draws what nobody can draw again."""
    cls = next((cls for cls in (*_SEQUENCES, *_CELLS) if isinstance(module, cls)), None)
    if cls is None or "forward" in vars(module) or type(module).forward is not cls.forward:
        return None
    form = _sequence(module) if isinstance(module, nn.RNNBase) else _cell(module)
    held = [module._parameters.get(name) for name in form.all_names]
    if any(one is None for one in held):
        return None
    if isinstance(module, nn.RNNBase):
        if module.training and module.dropout and module.num_layers > 1:
            return None
        # What torch reads is this list, whatever the names say.
        flat: list[Any] = module._flat_weights
        if len(flat) != len(held) or any(one is not other for one, other in zip(flat, held, strict=True)):
            return None
    return form


def _sequence(module: nn.RNNBase) -> Form:
    ends = ("", "_reverse") if module.bidirectional else ("",)
    suffixes = tuple(tuple(f"_l{layer}{end}" for end in ends) for layer in range(module.num_layers))
    names = _names(bias=bool(module.bias), projected=bool(module.proj_size))
    fused = module.mode == "LSTM" and not module.proj_size
    return Form(*_KINDS[module.mode], suffixes, names, 0 if module.batch_first else 1, sequence=True, fused=fused)


def _cell(module: Any) -> Form:
    if isinstance(module, nn.RNNCell):
        mode = f"RNN_{module.nonlinearity.upper()}"
    else:
        mode = "LSTM" if isinstance(module, nn.LSTMCell) else "GRU"
    return Form(*_KINDS[mode], (("",),), _names(bias=bool(module.bias), projected=False), 0, sequence=False)


def _names(*, bias: bool, projected: bool) -> tuple[str, ...]:
    biases = ("bias_ih", "bias_hh") if bias else ()
    return ("weight_ih", "weight_hh", *biases, *(("weight_hr",) if projected else ()))
