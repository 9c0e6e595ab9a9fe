"""Recurrent modules that read packed sequences, recomputed one sequence at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import RNNBase
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from gradscope.random_numbers import has_random_state, random_state, random_state_kept
from gradscope.rules.recompute import RecomputationError, without_hooks


def sample_of_packed_row(packed: PackedSequence) -> Tensor:
    """The sample that each row of a packed sequence belongs to, int64 ``[R]``, in the order before packing."""
    steps = [torch.arange(int(size), device="cpu") for size in packed.batch_sizes]
    place = torch.cat(steps).to(packed.data.device)
    return place if packed.sorted_indices is None else packed.sorted_indices[place]


@dataclass(frozen=True, slots=True, eq=False)
class PackedRecomputation:
    """One call of a recurrent module on a packed sequence, ready to be run again for each sequence.

    Attributes:
        module: the module.
        parameters: its parameters that are asked for, by local name.
        packed: what it read.
        state: the initial state, or None.
        grads: what came back for the packed output's rows and for each final state; None where nothing did.
        samples: n.
        autocast: device type, enabled and dtype of autocast when the module ran.
    """

    module: RNNBase
    parameters: Mapping[str, Tensor]
    packed: PackedSequence
    state: Any
    grads: Sequence[Tensor | None]
    samples: int
    autocast: tuple[str, bool, torch.dtype]

    def contributions(self) -> dict[str, Tensor]:
        """``hᵢ`` of each asked parameter, ``[n, *shape]``.

        Raises:
            RecomputationError: if the module draws random numbers.
        """
        owner = sample_of_packed_row(self.packed)
        with random_state_kept(owner.device), without_hooks(self.module), torch.enable_grad():
            before = random_state()
            rows = [self._one((owner == i).nonzero()[:, 0], i) for i in range(self.samples)]
            if not has_random_state(before) or (self.module.training and self.module.dropout):
                raise RecomputationError("it draws random numbers, so recomputing it would not give what ran")
        return {name: torch.stack([row[k] for row in rows]) for k, name in enumerate(self.parameters)}

    def _one(self, rows: Tensor, i: int) -> tuple[Tensor, ...]:
        parameters = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        state = None if self.state is None else pytree.tree_map(lambda one: one.detach()[:, i], self.state)
        device, enabled, dtype = self.autocast
        with torch.autocast(device, enabled=enabled, dtype=dtype, cache_enabled=False):
            # A sequence without a batch dimension: torch runs it as a batch of one, whatever ``batch_first`` says.
            output = functional_call(self.module, parameters, (self.packed.data.detach()[rows], state))
        pairs = [
            (one, grad[rows] if k == 0 else grad[:, i])
            for k, (one, grad) in enumerate(zip(pytree.tree_leaves(output), self.grads, strict=True))
            if grad is not None
        ]
        outputs, grads = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, list(parameters.values()), grads, allow_unused=True)
        zipped = zip(found, parameters.values(), strict=True)
        return tuple(torch.zeros_like(value) if grad is None else grad for grad, value in zipped)
