"""ASDL: every sample's gradient, from hooks."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Figures, Runner, UnavailableError, flat_norms


class BatchGradients(Runner):
    """``save_batch_gradient``; norms are taken from the gradients. Layers that it does not know stay unmeasured."""

    found: dict[str, Tensor]

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        import asdl

        self.save = asdl.save_batch_gradient

    def step(self) -> None:
        self.save(self.problem.model, self._backward)
        with torch.no_grad():
            self.found = {
                name: flat_norms(parameter.batch_grad) * self.problem.samples
                for name, parameter in self.parameters.items()
                if getattr(parameter, "batch_grad", None) is not None
            }
        if not self.found:
            raise UnavailableError("it knows none of the layers")

    def _backward(self) -> Tensor:
        loss = self.problem.loss()
        loss.backward()
        return loss

    def figures(self) -> Figures:
        return Figures(norms=self.found)

    def clear(self) -> None:
        super().clear()
        for parameter in self.parameters.values():
            parameter.__dict__.pop("batch_grad", None)
