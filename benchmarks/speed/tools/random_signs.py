"""Random signs alone: one more backward inside the first, for the variance's trace and nothing per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Figures, Runner


class RandomSigns(Runner):
    """``H = Σ rᵢhᵢ`` with balanced signs; ``n‖H‖²`` is an unbiased estimate of ``tr Σ``."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.generator = torch.Generator().manual_seed(0)
        self.leaves = list(self.parameters.values())
        self.square = torch.zeros(())
        self.model = problem.model
        self.handle = self.model.register_forward_hook(lambda module, inputs, output: self._hang(output))

    def _hang(self, output: Tensor) -> None:
        def measure(gradient: Tensor) -> None:
            handle.remove()  # the inner backward passes here too
            signs = self._signs(gradient)
            found = torch.autograd.grad(output, self.leaves, signs * gradient, retain_graph=True)
            self.square = self.problem.samples * torch.stack(torch._foreach_norm(found)).double().square().sum()

        handle = output.register_hook(measure)

    def _signs(self, gradient: Tensor) -> Tensor:
        n = gradient.shape[0]
        signs = torch.ones(n)
        signs[n // 2 :] = -1
        signs[n - n % 2 :] = 0
        drawn = signs[torch.randperm(n, generator=self.generator)]
        return drawn.to(gradient).reshape(-1, *[1] * (gradient.dim() - 1))

    def step(self) -> None:
        self.problem.loss().backward()

    def figures(self) -> Figures:
        n = self.problem.samples
        return Figures(trace_cov=float(self.square) * (n / (n - n % 2)))

    def close(self) -> None:
        self.handle.remove()
