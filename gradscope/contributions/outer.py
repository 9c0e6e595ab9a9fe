"""Contributions of layers that multiply: sums of outer products of what came in and what came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradscope.contributions.compiled import GRAM_KERNEL, PRODUCT_KERNEL, gram_sums, kernels_for, looked, outer_sums
from gradscope.contributions.contribution import Contribution, Probe, project
from gradscope.contributions.figures import Figures
from gradscope.contributions.gram import SharedBlocks
from gradscope.contributions.outer_bias import OuterBias, along, sums_along
from gradscope.contributions.outer_norms import (
    GRAM,
    PRODUCTS,
    by_gram,
    by_products,
    by_squares,
    by_vectors,
    costs,
    large,
)
from gradscope.contributions.precision import working
from gradscope.contributions.rows import RowOrder
from gradscope.contributions.workspace import Workspace
from gradscope.wide import widen

#: From so many positions on, probes are taken from sums along them.
POSITIONS = 8


class Outer(Contribution):
    """``hᵢ = Σₜ grads[i, t]ᵀ inputs[i, t]``, block by block where the layer has groups.

    Args:
        inputs: ``[n, groups, T, d]``, what the layer multiplied its weight with (conjugated, if complex).
        grads: ``[n, groups, T, p]``, gradient of the layer's output.
        shape: the parameter's; ``groups·p·d`` elements, output dimension first.
        shared: Gram blocks of ``grads``, where other weights have the same; None where none has.

    Attributes:
        shared_inputs: the same of ``inputs``.
        bias: the bias that was added to the product, whose sums the probe comes by; None where there is none.

    A parameter that keeps its input dimension first (``[d, p]``) is described by swapping the two factors.
    """

    shared: SharedBlocks | None = None
    shared_inputs: SharedBlocks | None = None
    bias: OuterBias | None = None

    def __init__(self, inputs: Tensor, grads: Tensor, shape: torch.Size, shared: SharedBlocks | None = None) -> None:
        self.shared = shared
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
        return self._figures(Workspace(), None, moments=False).squares

    def figures(
        self, probe: Probe | None = None, *, moments: bool = False, workspace: Workspace | None = None
    ) -> Figures:
        found = self._figures(workspace or Workspace(), probe, moments=moments)
        if probe is None or found.probes is not None:
            return found
        # From the factors: that reads less than the gradients, even where these exist for a moment.
        return replace(found, probes=self.probe(probe))

    def _figures(self, workspace: Workspace, probe: Probe | None, *, moments: bool) -> Figures:
        inputs, grads = self.inputs, self.grads
        if inputs.shape[2] == 1:
            return Figures(by_vectors(inputs, grads), None, self._by_squares(workspace) if moments else None)
        return self._by(self._algorithm(workspace, moments=moments), workspace, probe, moments=moments)

    def _algorithm(self, workspace: Workspace, *, moments: bool) -> str:
        inputs, grads = self.inputs, self.grads
        return workspace.choice(
            ("outer", *inputs.shape, grads.shape[3], moments, inputs.dtype, inputs.device.type),
            lambda: costs(inputs, grads, workspace, moments=moments),
            lambda name: self._by(name, workspace, None, moments=moments).squares.sum(),
        )

    def _by(self, algorithm: str, workspace: Workspace, probe: Probe | None, *, moments: bool) -> Figures:
        if algorithm == GRAM:
            return Figures(
                by_gram(self.inputs, self.grads, workspace, (self.shared_inputs, self.shared)), algorithm=algorithm
            )
        if algorithm in (GRAM_KERNEL, PRODUCT_KERNEL) and kernels_for(self.inputs, self.grads):
            return self._by_kernel(algorithm, workspace, probe, moments=moments)
        p, d = self.grads.shape[3], self.inputs.shape[3]
        along = None
        if probe is not None and (large(self.inputs, self.grads) or p * d >= self.inputs.shape[2] * (p + d)):
            # The factors are what reads less. Before the products, which find them in cache.
            along, probe = self.probe(probe), None
        found = by_products(self.inputs, self.grads, probe, moments=moments, workspace=workspace)
        moment = found.second_moment if found.second_moment is None else found.second_moment.reshape(self.shape)
        return replace(found, probes=found.probes if along is None else along, second_moment=moment)

    def sampled(self, chosen: Tensor, probe: Probe | None, *, moments: bool, workspace: Workspace) -> Figures:
        n, algorithm = chosen.numel(), ""
        if self.inputs.shape[2] > 1 and kernels_for(self.inputs, self.grads):
            some = Outer(self.inputs[:n], self.grads[:n], self.shape)
            algorithm = some._algorithm(workspace, moments=moments)
        if algorithm == GRAM_KERNEL:
            along = None if probe is None else probe.single
            sums = gram_sums(self.inputs, self.grads, workspace, along, self.bias, chosen)
            found = Figures(sums.squares, sums.probes, None, algorithm)
            return found if probe is None or along is not None else replace(found, probes=self.probe(probe))
        if algorithm == PRODUCT_KERNEL:
            probes = None if probe is None else self.probe(probe)
            sums = outer_sums(self.inputs, self.grads, self.shape, workspace, moments=moments, chosen=chosen)
            squares = sums.squares.new_full((self.samples,), float("nan"))
            squares[chosen] = sums.squares
            return Figures(squares, probes, sums.second_moment, algorithm)
        return super().sampled(chosen, probe, moments=moments, workspace=workspace)

    def _by_kernel(self, algorithm: str, workspace: Workspace, probe: Probe | None, *, moments: bool) -> Figures:
        along = None if probe is None else probe.single
        if algorithm == GRAM_KERNEL:
            sums = gram_sums(self.inputs, self.grads, workspace, along, self.bias)
        else:
            sums = outer_sums(
                self.inputs, self.grads, self.shape, workspace, moments=moments, directions=along, bias=self.bias
            )
        return Figures(sums.squares, sums.probes, sums.second_moment, algorithm)

    def probe(self, probe: Probe) -> Tensor:
        n, groups, positions, p = self.grads.shape
        if groups == 1 and positions >= POSITIONS:
            return self._probe_by_sums(probe)
        right = project(self.inputs.reshape(-1, self.inputs.shape[3]), probe.right)
        if groups == 1:
            left = project(self.grads.reshape(-1, p), probe.left)
        else:
            left = torch.einsum("ngtp,kgp->kngt", self.grads, probe.left.reshape(-1, groups, p)).flatten(1)
        products = (left * right).reshape(-1, n, groups * positions)
        return widen(products[:, :, 0] if products.shape[2] == 1 else products.sum(2)).T

    def _probe_by_sums(self, probe: Probe) -> Tensor:
        """``(Σₜ (gₜ·u) aₜ)·v`` or ``u·(Σₜ (aₜ·v) gₜ)``: sums along positions read twice as fast as products with a direction."""
        found = None
        if probe.single is not None:
            found = looked(self.inputs, self.grads, probe.single, self.bias)
        if found is not None:
            return found
        inputs, grads = self.inputs[:, 0], self.grads[:, 0]
        if inputs.shape[2] > grads.shape[2]:
            return along(sums_along(inputs, project(grads.flatten(0, 1), probe.left)), probe.right)
        sums = sums_along(grads, project(inputs.flatten(0, 1), probe.right), ones=self.bias is not None)
        if self.bias is None:
            return along(sums, probe.left)
        self.bias.found(sums[:, 0])
        return along(sums[:, 1:], probe.left)

    def dense(self) -> Tensor:
        return (self.grads.transpose(2, 3) @ self.inputs).reshape(self.samples, *self.shape)

    def one(self, i: int) -> Tensor:
        return (self.grads[i].mT @ self.inputs[i]).reshape(self.shape)

    def select(self, index: Tensor) -> Outer:
        return Outer(self.inputs[index], self.grads[index], self.shape)

    def borrow(self, index: Tensor, workspace: Workspace) -> Outer:
        inputs = workspace.chosen("chosen inputs", self.inputs, index)
        return Outer(inputs, workspace.chosen("chosen gradients", self.grads, index), self.shape)

    def regroup(self, sample_of_row: Tensor, samples: int) -> Outer:
        order = RowOrder.of(sample_of_row, samples)
        inputs, grads = (order.gather(factor).transpose(1, 2).flatten(2, 3) for factor in (self.inputs, self.grads))
        return Outer(inputs, grads, self.shape)

    def second_moment(self) -> Tensor:
        if self.inputs.shape[2] == 1:
            return self._by_squares(None)
        moment = self._by(PRODUCTS, Workspace(), None, moments=True).second_moment
        return self.inputs.new_zeros(self.shape) if moment is None else moment

    def _by_squares(self, workspace: Workspace | None) -> Tensor:
        whole = workspace is not None and self.inputs.shape[1] == 1 and not self.inputs.is_complex()
        size = torch.Size((self.grads.shape[3], self.inputs.shape[3]))
        into = workspace.lend(size, self.inputs) if whole and workspace is not None else None
        return by_squares(self.inputs, self.grads, into).reshape(self.shape)

    def joined(self, others: Sequence[Outer]) -> Outer:
        """All uses of one weight as one: their positions side by side."""
        uses = (self, *others)
        inputs = torch.cat([use.inputs for use in uses], dim=2)
        return Outer(inputs, torch.cat([use.grads for use in uses], dim=2), self.shape)
