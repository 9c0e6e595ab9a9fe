"""gns-pytorch: the noise scale of a batch from one backward per sample."""

from __future__ import annotations

import random

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Figures, Runner


class NoiseScale(Runner):
    """``compute_gns`` on this share of parameters and samples, then the step's own backward."""

    def __init__(self, problem: Problem, **shares: float) -> None:
        super().__init__(problem)
        from gns_pytorch import compute_gns

        self.compute, self.shares, self.value = compute_gns, shares, 0.0
        random.seed(0)

    def step(self) -> None:
        losses = self.problem.sample_losses()
        self.value = self.compute(losses, self.problem.model, **self.shares)
        losses.mean().backward()

    def figures(self) -> Figures:
        return Figures(noise_scale=self.value) if self.shares else Figures()
