"""Convolutions and transposed convolutions in one, two and three dimensions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.conv import _ConvNd

from gradscope.contributions import Contribution, Convolution, Dense
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.precision import working
from gradscope.rules.linear import as_computed
from gradscope.rules.rule import Rule, owns


def _geometry(module: _ConvNd, padding: tuple[int, ...]) -> Geometry:
    return Geometry(tuple(module.kernel_size), tuple(module.stride), tuple(module.dilation), module.groups, padding)


def _padded(module: _ConvNd, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input, and how many zeros belong around it; other padding is put there at once."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    pad = list(module._reversed_padding_repeated_twice)
    if mode == "constant" and pad[::2] == pad[1::2]:
        return x, tuple(pad[::-2])
    return F.pad(x, pad, mode=mode) if any(pad) else x, ()


def _bias(module: Module, grad: Tensor) -> dict[str, Contribution]:
    if module._parameters.get("bias") is None:
        return {}
    return {"bias": Dense(working(grad).flatten(2).sum(2))}


def describe_convolution(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """Output gradients times input patches."""
    x, zeros = _padded(module, as_computed(inputs[0], grad))  # type: ignore[arg-type]
    weight = Convolution(x, grad, module.weight.shape, _geometry(module, zeros))  # type: ignore
    return {"weight": weight, **_bias(module, grad)}


def describe_transposed(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """A transposed convolution's weight gradient is a convolution's with input and output gradient exchanged."""
    x = as_computed(inputs[0], grad)
    weight = Convolution(grad, x, module.weight.shape, _geometry(module, tuple(module.padding)))  # type: ignore
    return {"weight": weight, **_bias(module, grad)}


CONVOLUTION = Rule("convolution", describe_convolution, refuse=owns("weight"))
TRANSPOSED_CONVOLUTION = Rule("transposed convolution", describe_transposed, refuse=owns("weight"))
