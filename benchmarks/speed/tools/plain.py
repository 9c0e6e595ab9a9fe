"""A plain step, and the same in two micro-steps."""

from __future__ import annotations

import torch

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Runner


class Plain(Runner):
    """Forward, loss, backward."""

    def step(self) -> None:
        self.problem.loss().backward()


class TwoMicroSteps(Runner):
    """The batch in two halves, whose gradients add up to the batch's; each step draws other halves."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.generator = torch.Generator().manual_seed(0)
        self.halves = self._draw()

    def _draw(self) -> tuple[Problem, Problem]:
        problem, half = self.problem, self.problem.samples // 2
        order = torch.randperm(problem.samples, generator=self.generator).to(problem.device)
        mixed = problem.of(problem.model, tuple(each[order] for each in problem.inputs), problem.targets[order])
        return mixed.rows(0, half), mixed.rows(half, problem.samples)

    def step(self) -> None:
        for half in self.halves:
            (half.loss() * (half.samples / self.problem.samples)).backward()

    def clear(self) -> None:
        super().clear()
        self.halves = self._draw()
