"""What the demo can train: a task and the problem that it sets up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

Criterion: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A model, what trains it, and the samples it learns from.

    Attributes:
        model: freshly initialised from torch's global random state.
        optimizer: over all of the model's parameters.
        criterion: mean loss of a micro-batch, from the model's output and the target.
        samples: pairs (input, target), one per sample.
        score: how good the model is on samples held out from training, in words.
    """

    model: nn.Module
    optimizer: Optimizer
    criterion: Criterion
    samples: TensorDataset
    score: Callable[[nn.Module], str]
