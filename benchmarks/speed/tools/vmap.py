"""``torch.func`` over the whole model: ``vmap(grad(loss))``."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from benchmarks.speed.problem import Problem, cross_entropy
from benchmarks.speed.tools.tool import Figures, Runner, flat_norms


class Vmapped(Runner):
    """Every sample's gradient in full; their mean becomes ``.grad``, so that training could go on."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.gradients: dict[str, Tensor] = {}
        in_dims = (None, *[0] * (len(problem.inputs) + 1))
        self.transformed = vmap(grad(self._sample_loss), in_dims=in_dims, chunk_size=problem.chunk)

    def _sample_loss(self, parameters: dict[str, Tensor], *batch: Tensor) -> Tensor:
        *inputs, targets = (each.unsqueeze(0) for each in batch)
        with self.problem.precision():
            return cross_entropy(functional_call(self.problem.model, parameters, tuple(inputs)), targets)

    def step(self) -> None:
        detached = {name: parameter.detach() for name, parameter in self.parameters.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says where it has no batching rule and is slower
            self.gradients = self.transformed(detached, *self.problem.inputs, self.problem.targets)
        self.finish()
        for name, parameter in self.parameters.items():
            parameter.grad = self.gradients[name].mean(0)

    def finish(self) -> None:
        """Make figures of the gradients."""

    def figures(self) -> Figures:
        return Figures(norms={name: flat_norms(each) for name, each in self.gradients.items()})

    def clear(self) -> None:
        super().clear()
        self.gradients = {}


class VmappedNorms(Vmapped):
    """Their norms too."""

    found: dict[str, Tensor]

    @torch.no_grad()
    def finish(self) -> None:
        self.found = {name: flat_norms(each) for name, each in self.gradients.items()}

    def figures(self) -> Figures:
        return Figures(norms=self.found)


class VmappedMoments(Vmapped):
    """The mean of their squares too."""

    found: dict[str, Tensor]

    @torch.no_grad()
    def finish(self) -> None:
        self.found = {name: each.square().mean(0) for name, each in self.gradients.items()}

    def figures(self) -> Figures:
        return Figures(second=self.found)
