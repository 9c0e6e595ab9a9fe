"""Contributions of layers that multiply: sums of outer products of what came in and what came back."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.contributions.contribution import Contribution, Probe, project
from gradscope.contributions.dense import widen
from gradscope.contributions.outer_norms import outer_second_moment, outer_squared_norms
from gradscope.contributions.precision import working
from gradscope.contributions.rows import RowOrder


class Outer(Contribution):
    """``hᵢ = Σₜ grads[i, t]ᵀ inputs[i, t]``, block by block where the layer has groups.

    Args:
        inputs: ``[n, groups, T, d]``, what the layer multiplied its weight with (conjugated, if complex).
        grads: ``[n, groups, T, p]``, gradient of the layer's output.
        shape: the parameter's; ``groups·p·d`` elements, output dimension first.

    A parameter that keeps its input dimension first (``[d, p]``) is described by swapping the two factors.
    """

    def __init__(self, inputs: Tensor, grads: Tensor, shape: torch.Size) -> None:
        self.inputs = working(inputs)
        self.grads = working(grads)
        self.shape = shape

    @property
    def samples(self) -> int:
        return self.inputs.shape[0]

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.grads.nbytes

    def squared_norms(self) -> Tensor:
        return outer_squared_norms(self.inputs, self.grads)

    def probe(self, probe: Probe) -> Tensor:
        n, groups, positions, p = self.grads.shape
        right = project(self.inputs.reshape(-1, self.inputs.shape[3]), probe.right)
        if groups == 1:
            left = project(self.grads.reshape(-1, p), probe.left)
        else:
            left = torch.einsum("ngtp,kgp->kngt", self.grads, probe.left.reshape(-1, groups, p)).flatten(1)
        products = (left * right).reshape(-1, n, groups * positions)
        return widen(products[:, :, 0] if products.shape[2] == 1 else products.sum(2)).T

    def dense(self) -> Tensor:
        return (self.grads.transpose(2, 3) @ self.inputs).reshape(self.samples, *self.shape)

    def select(self, index: Tensor) -> Outer:
        return Outer(self.inputs[index], self.grads[index], self.shape)

    def regroup(self, sample_of_row: Tensor, samples: int) -> Outer:
        order = RowOrder(sample_of_row, samples)
        inputs, grads = (order.gather(factor).transpose(1, 2).flatten(2, 3) for factor in (self.inputs, self.grads))
        return Outer(inputs, grads, self.shape)

    def second_moment(self) -> Tensor:
        return outer_second_moment(self.inputs, self.grads).reshape(self.shape)

    def joined(self, other: Outer) -> Outer:
        """Both uses of one weight as one: their positions side by side."""
        inputs = torch.cat([self.inputs, other.inputs], dim=2)
        return Outer(inputs, torch.cat([self.grads, other.grads], dim=2), self.shape)
