"""TorchJD's autogram: inner products of the samples' gradients over the whole model; norms are its diagonal."""

from __future__ import annotations

from torch import Tensor

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Figures, Runner


class Gramian(Runner):
    """``Engine.compute_gramian`` of the samples' losses, then the step's own backward."""

    found: Tensor

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        from torchjd.autogram import Engine

        self.engine = Engine(problem.model, batch_dim=0)

    def step(self) -> None:
        losses = self.problem.sample_losses()
        self.found = self.engine.compute_gramian(losses).diagonal()
        losses.mean().backward()

    def figures(self) -> Figures:
        return Figures(total_norms=self.found.sqrt())
