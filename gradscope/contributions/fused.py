"""Contributions whose gradients are built once: their sum is what autograd gets, their squares are the figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from gradscope.contributions.compiled import builds, outer_sums
from gradscope.contributions.compiled_convolution import convolution_kernel, convolution_sums
from gradscope.contributions.contribution import Probe
from gradscope.contributions.convolution import Convolution
from gradscope.contributions.figures import Figures
from gradscope.contributions.fused_convolution import grouped, sums_of_convolutions
from gradscope.contributions.fused_sums import sums_of_products
from gradscope.contributions.outer import Outer
from gradscope.contributions.workspace import Workspace

#: As coverage shows it.
FUSED_KERNEL = "fused kernel"


class FusedOuter(Outer):
    """Outer products that are built sample by sample, squared and added up at once.

    Probes come from the factors, by products of vectors alone: a check of the sum that shares nothing with it.

    Args:
        outer: what is described; of one group.

    Attributes:
        summed: ``Σᵢ hᵢ`` as the figures' pass has found it; None before it.
    """

    def __init__(self, outer: Outer) -> None:
        super().__init__(outer.inputs, outer.grads, outer.shape)
        self.bias = outer.bias
        self.summed: Tensor | None = None

    def figures(
        self, probe: Probe | None = None, *, moments: bool = False, workspace: Workspace | None = None
    ) -> Figures:
        workspace = workspace or Workspace()
        if (probe is None or probe.single) and builds(self.inputs, self.grads, workspace):
            built = outer_sums(
                self.inputs, self.grads, self.shape, workspace, summed=True, moments=moments,
                directions=None if probe is None else probe.single, bias=self.bias,
            )  # fmt: skip
            self.summed = built.total
            return Figures(built.squares, built.probes, built.second_moment, FUSED_KERNEL)
        # Before the products, which find the factors in cache.
        along = None if probe is None else self.probe(probe)
        sums = sums_of_products(self.grads[:, 0], self.inputs[:, 0], workspace, moments=moments, alone=True).shaped(
            self.shape
        )
        self.summed = sums.total
        return replace(sums.figures(), probes=along)


class FusedConvolution(Convolution):
    """The same for convolutions of one group.

    Args:
        convolution: what is described.

    Attributes:
        summed: ``Σᵢ hᵢ`` as the figures' pass has found it; None before it.
    """

    def __init__(self, convolution: Convolution) -> None:
        super().__init__(convolution.inputs, convolution.grads, convolution.shape, convolution.geometry)
        self.summed: Tensor | None = None

    def figures(
        self, probe: Probe | None = None, *, moments: bool = False, workspace: Workspace | None = None
    ) -> Figures:
        workspace = workspace or Workspace()
        kernel = convolution_kernel(self.inputs, self.grads, self.geometry, workspace)
        if kernel is not None:
            along = None if probe is None else self.probe(probe)
            built = convolution_sums(kernel, self.inputs, self.shape, workspace, summed=True, moments=moments)
            self.summed = built.total
            return Figures(built.squares, along, built.second_moment, FUSED_KERNEL)
        own = self if grouped(self.inputs, self.grads) else self.padded()
        sums = sums_of_convolutions(
            own.inputs, own.grads, self.shape, own.geometry, workspace, moments=moments, probe=probe
        )
        self.summed = sums.total
        if probe is None or sums.probes is not None:
            return sums.figures()
        # From the factors: what shares nothing with the sum is a check of it.
        return replace(sums.figures(), probes=self.probe(probe))


def fused(contribution: Any) -> FusedOuter | FusedConvolution | None:
    """The same contribution, built in one pass; None for kinds that have nothing to gain."""
    if type(contribution) is Outer and contribution.inputs.shape[1] == 1 and not contribution.inputs.is_complex():
        return FusedOuter(contribution)
    if type(contribution) is Convolution and contribution.geometry.groups == 1:
        return FusedConvolution(contribution)
    return None
