"""What every tool's figures are held against: gradients of single samples, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.speed.problem import Problem


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Sums over samples of ``gᵢ``, the gradient of sample i's own loss.

    Attributes:
        samples: n.
        grad: the mean of ``gᵢ``, per parameter: what ``.grad`` must be.
        norms: ``‖gᵢ‖``, ``[n]``, per parameter.
        second: the mean of ``gᵢ²``, per parameter.
    """

    samples: int
    grad: dict[str, Tensor]
    norms: dict[str, Tensor]
    second: dict[str, Tensor]

    @property
    def variance(self) -> dict[str, Tensor]:
        """Unbiased variance across samples, per element."""
        n = self.samples
        return {name: (self.second[name] - self.grad[name].square()) * (n / (n - 1)) for name in self.grad}

    @property
    def trace_cov(self) -> float:
        """``tr Σ`` over all parameters."""
        return float(sum(each.sum() for each in self.variance.values()))

    @property
    def noise_scale(self) -> float:
        """``tr Σ / |G|²``, both unbiased."""
        squares = float(sum(each.square().sum() for each in self.grad.values()))
        return self.trace_cov / (squares - self.trace_cov / self.samples)

    @property
    def total_norms(self) -> Tensor:
        """``‖gᵢ‖`` over all parameters."""
        return torch.stack(list(self.norms.values())).norm(dim=0)


def truth(problem: Problem) -> Truth:
    """Run sample by sample. The problem's model becomes float64: give it one of its own.

    Low precision is not repeated: under autocast the tools' figures differ from these by its rounding.
    """
    model = problem.model.double()
    inputs = tuple(each.double() if each.is_floating_point() else each for each in problem.inputs)
    exact = Problem(model, inputs, problem.targets)
    leaves = dict(model.named_parameters())
    grad = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    second = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    norms: dict[str, list[Tensor]] = {name: [] for name in leaves}
    n = problem.samples
    for i in range(n):
        gradients = torch.autograd.grad(exact.rows(i, i + 1).loss(), list(leaves.values()))
        for name, one in zip(leaves, gradients, strict=True):
            grad[name].add_(one, alpha=1 / n)
            second[name].addcmul_(one, one, value=1 / n)
            norms[name].append(one.norm())
    return Truth(n, grad, {name: torch.stack(each) for name, each in norms.items()}, second)
