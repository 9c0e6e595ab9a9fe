"""What a family of models is, and one tiny member of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

#: Samples of every batch.
N = 4


def outputs_of(model: Module, batch: Any) -> Tensor:
    """One loss per sample, from the model's only output."""
    return wave(model(*batch))


def wave(output: Tensor) -> Tensor:
    """A loss per sample that no layer is blind to: sines of different frequency, summed over all but dimension 0."""
    rows = output.reshape(output.shape[0], -1)
    return (rows * (1 + torch.arange(rows.shape[1]).remainder(3) / 2) + 0.7).sin().sum(1)


@dataclass(frozen=True)
class Family:
    """A tiny model of one family, with random weights.

    Attributes:
        name: as the table shows it.
        build: makes the model in float32.
        batch: makes the batch of ``N`` samples.
        losses: one loss per sample, ``[N]``, from one forward.
        needs: the optional package that it comes from.
        batch_dim: where the samples lie.
        mixes: samples interact, so that some parameters have no per-sample gradients.
        foreign: has a custom autograd.Function, whose backward runs a second time only with ``second_pass=True``.
        oracle: precision of the oracle, where the model runs in one precision only.
    """

    name: str
    build: Callable[[], Module]
    batch: Callable[[], Any]
    losses: Callable[[Module, Any], Tensor] = outputs_of
    needs: str = ""
    batch_dim: int = 0
    mixes: bool = False
    oracle: torch.dtype = torch.float64
    foreign: bool = False

    def __str__(self) -> str:
        return self.name


def normal(*shape: int) -> Callable[[], tuple[Tensor]]:
    """A batch of inputs that are not centred, so that gradients have a common part."""
    return lambda: (0.5 + torch.randn(N, *shape),)


def tokens(vocabulary: int, length: int) -> Callable[[], tuple[Tensor]]:
    """A batch of token ids."""
    return lambda: (torch.randint(3, vocabulary, (N, length)),)
