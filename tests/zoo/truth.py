"""The figures of a problem, from contributions that something slow and obvious gave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.reference import per_sample_gradients
from zoo.problem import N, Problem


def contributions(problem: Problem) -> dict[str, Tensor]:
    """What each sample adds to each parameter's gradient, float64 ``[n, *shape]``."""
    model, batch = problem.model(), problem.batch()
    divisor = problem.divisor(batch)
    if problem.oracle:
        found = per_sample_gradients(model, lambda m, b: problem.total(m, b) / divisor, batch)
        return {name: g / N for name, g in found.items()}
    return one_by_one(problem)


def one_by_one(problem: Problem) -> dict[str, Tensor]:
    """The same from single samples, each on its own."""
    model, batch = problem.model(), problem.batch()
    names, parameters = zip(*model.named_parameters(), strict=True)
    rows = []
    for i in range(N):
        loss = problem.total(model, problem.take(batch, [i])) / problem.divisor(batch)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        rows.append(
            [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, grads, strict=True)]
        )
    return {name: torch.stack([row[k] for row in rows]) for k, name in enumerate(names)}


@dataclass(frozen=True)
class Figures:
    """What a ``Stats`` should say; formulas written out, none of them the package's.

    Attributes:
        noise_scale: NaN where not resolved.
        gsnr: NaN where it would rest on rounding.
    """

    grad_norm: float
    sample_norms: Tensor
    trace_cov: float
    grad_sq: float
    noise_scale: float
    snr: float
    diversity: float
    variance: Tensor
    gsnr: float


def figures(parts: list[Tensor]) -> Figures:
    """Figures of one unit, from the contributions ``[n, ...]`` of its parameters.

    Complex elements count as one element whose variance is that of both of its parts.
    """
    h = torch.cat([part.reshape(len(part), -1) for part in parts], 1)
    n = len(h)
    g, mean = n * h, h.sum(0)
    squared_norms = g.abs().square().sum(1)
    variance = (g - g.mean(0)).abs().square().sum(0) / (n - 1)
    trace = float(variance.sum())
    grad_sq = float(mean.abs().square().sum()) - trace / n
    signal = mean.abs().square() - variance / n
    moved = (variance != 0) | (signal != 0)
    ratios = (signal / variance)[moved]
    # An element without a gradient by structure has only rounding, whose ratio means nothing.
    sound = bool((variance >= 1e-20 * variance.max())[moved].all())
    return Figures(
        grad_norm=float(mean.norm()),
        sample_norms=squared_norms.sqrt(),
        trace_cov=trace,
        grad_sq=grad_sq,
        noise_scale=trace / grad_sq if grad_sq > 0 else float("nan"),
        snr=grad_sq / (trace / n),
        diversity=float(squared_norms.sum() / g.sum(0).abs().square().sum()),
        variance=variance,
        gsnr=float(ratios.mean()) if sound else float("nan"),
    )
