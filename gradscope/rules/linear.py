"""Linear layers, with any number of middle dimensions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module

from gradscope.contributions import Contribution, Outer, OuterBias, Row, RowBias
from gradscope.rules.rule import Rule, owns


def as_computed(x: Tensor, grad: Tensor) -> Tensor:
    """The input in the dtype in which autocast multiplied it, conjugated where it is complex."""
    x = x if x.dtype == grad.dtype else x.to(grad.dtype)
    return x.conj() if x.is_complex() else x


def describe_linear(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """``∂L/∂W = Σₜ gₜ aₜᵀ`` and ``∂L/∂b = Σₜ gₜ``, per sample."""
    x = as_computed(inputs[0], grad)
    if grad.dim() == 2:
        row = Row(x, grad, module._parameters["weight"].shape)  # type: ignore[union-attr]
        return {"weight": row} if module._parameters.get("bias") is None else {"weight": row, "bias": RowBias(row)}
    n, p = grad.shape[0], grad.shape[-1]
    grads = grad.reshape(n, 1, -1, p)
    weight = Outer(x.reshape(n, 1, -1, x.shape[-1]), grads, module._parameters["weight"].shape)  # type: ignore[union-attr]
    described: dict[str, Contribution] = {"weight": weight}
    if module._parameters.get("bias") is not None:
        described["bias"] = weight.bias = OuterBias(weight.grads[:, 0])
    return described


LINEAR = Rule("linear", describe_linear, rows="leading", refuse=owns("weight"))
