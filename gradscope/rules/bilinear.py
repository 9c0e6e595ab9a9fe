"""Bilinear layers: linear in the outer product of their two inputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module

from gradscope.contributions import Contribution, Dense, Outer
from gradscope.rules.linear import as_computed
from gradscope.rules.rule import Rule, owns


def describe_bilinear(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """``∂L/∂W = Σₜ gₜ ⊗ x₁ₜ ⊗ x₂ₜ``."""
    n, p = grad.shape[0], grad.shape[-1]
    first, second = (as_computed(x, grad).reshape(n, -1, x.shape[-1]) for x in inputs[:2])
    pairs = (first.unsqueeze(3) * second.unsqueeze(2)).flatten(2).unsqueeze(1)
    weight = Outer(pairs, grad.reshape(n, 1, -1, p), module.weight.shape)  # type: ignore
    described: dict[str, Contribution] = {"weight": weight}
    if module._parameters.get("bias") is not None:
        described["bias"] = Dense(weight.grads[:, 0].sum(1))
    return described


BILINEAR = Rule("bilinear", describe_bilinear, rows="leading", refuse=owns("weight"))
