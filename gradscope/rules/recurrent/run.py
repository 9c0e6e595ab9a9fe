"""One layer of a recurrent module in one direction, as it ran, and what came back through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.contributions import Contribution, Dense, Outer
from gradscope.contributions.gram import SharedBlocks


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One layer in one direction. Time is the first dimension, samples the second.

    Attributes:
        weights: by name without suffix: ``weight_ih``, ``weight_hh``, and where it has them ``bias_ih``, ``bias_hh``,
            ``weight_hr``.
        x: what the layer read, ``[T, n, d]``.
        before: the hidden state that each step read, ``[T, n, p]``.
        after: the one that it left, ``[T, n, p]``.
        cell: an LSTM's first cell state, ``[n, h]``; None for zeros.
        grad: gradient of the hidden states by what is above, the last state's included, ``[T, n, p]``.
        cell_grad: gradient of the last cell state, ``[n, h]``; None for zeros.
        absent: where a sequence has no such step, ``[T, n, 1]``; None where all are of one length.
        reverse: whether it ran from the last step to the first.
    """

    weights: Mapping[str, Tensor]
    x: Tensor
    before: Tensor
    after: Tensor
    cell: Tensor | None
    grad: Tensor
    cell_grad: Tensor | None
    absent: Tensor | None
    reverse: bool

    @property
    def backwards(self) -> range:
        """The steps, last run first."""
        steps = self.x.shape[0]
        return range(steps) if self.reverse else range(steps - 1, -1, -1)

    def read(self) -> Tensor:
        """What the gates receive from the input, ``[T·n, gates·h]``."""
        return self._product(self.x, "ih")

    def remembered(self) -> Tensor:
        """What they receive from the hidden state, ``[T·n, gates·h]``."""
        return self._product(self.before, "hh")

    def _product(self, rows: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"weight_{name}"].t(), self.weights.get(f"bias_{name}")
        flat = rows.reshape(-1, rows.shape[2])
        return flat.mm(weight) if bias is None else torch.addmm(bias, flat, weight)

    def received(self) -> Tensor:
        """The sum of both, ``[T·n, gates·h]``."""
        weight = self.weights["weight_hh"].t()
        total = self.read().addmm_(self.before.reshape(-1, weight.shape[0]), weight)
        bias = self.weights.get("bias_hh")
        return total if bias is None else total.add_(bias)

    def silence(self, *factors: Tensor) -> None:
        """Set to zero, in place, what belongs to steps that a sequence does not have, ``[T, n, ·]``."""
        if self.absent is not None:
            for factor in factors:
                factor.masked_fill_(self.absent, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """What came back through one run.

    Attributes:
        read: gradient of what the gates received from the input, ``[T, n, gates·h]``.
        remembered: of what they received from the hidden state; the same tensor but for a GRU.
        unprojected: an LSTM's hidden states before their projection, ``[T, n, h]``, and the gradient after it, ``[T, n, p]``.
    """

    read: Tensor
    remembered: Tensor
    unprojected: tuple[Tensor, Tensor] | None = None

    def below(self, run: Run) -> Tensor:
        """Gradient of what the layer read, ``[T, n, d]``."""
        flat = self.read.flatten(0, 1).mm(run.weights["weight_ih"])
        return flat.view(*self.read.shape[:2], -1)

    def describe(self, run: Run, order: Tensor | None, asked: Sequence[str]) -> dict[str, Contribution]:
        """Contributions by name without suffix.

        Args:
            run: what came back through.
            order: where each sample's sequence lies; None where they lie in order.
            asked: which parameters.
        """
        described: dict[str, Contribution] = {}
        read = _by_sample(self.read, order)
        same = self.remembered is self.read
        remembered = read if same else _by_sample(self.remembered, order)
        shared = SharedBlocks() if same else None
        for name, inputs, grads in (("ih", run.x, read), ("hh", run.before, remembered)):
            if f"weight_{name}" in asked:
                shape = run.weights[f"weight_{name}"].shape
                factors = _by_sample(inputs, order).unsqueeze(1), grads.unsqueeze(1)
                described[f"weight_{name}"] = Outer(*factors, shape, shared)
        if "bias_ih" in asked or (same and "bias_hh" in asked):
            described["bias_ih"] = Dense(read.sum(1))
        if "bias_hh" in asked:
            described["bias_hh"] = described["bias_ih"] if same else Dense(remembered.sum(1))
        if "weight_hr" in asked and self.unprojected is not None:
            inputs, grads = (_by_sample(factor, order).unsqueeze(1) for factor in self.unprojected)
            described["weight_hr"] = Outer(inputs, grads, run.weights["weight_hr"].shape)
        return described


def _by_sample(rows: Tensor, order: Tensor | None) -> Tensor:
    rows = rows.transpose(0, 1)
    return rows.contiguous() if order is None else rows[order]
