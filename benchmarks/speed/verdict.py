"""Whether what a tool found is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.speed.tools.tool import Figures
from benchmarks.speed.truth import Truth

#: Relative difference up to which a figure counts as right: 50 layers of float32 (or of cuDNN's TF32), and ReLU's kinks,
#: which float64 sees otherwise. What is wrong is wrong by far more.
TOLERANCE = 2e-2
#: The same under autocast to 16 bits, whose truth is of full precision.
LOW_PRECISION = 1e-1
#: A parameter's figures below this share of the largest are rounding noise (attention's key biases).
FLOOR = 1e-4
#: Standard errors by which the mean of estimates may miss.
ERRORS = 5.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check says.

    Attributes:
        status: ``exact``, ``estimate``, ``wrong``, or ``none`` where the tool gives no figure that could be checked.
        measured: parameters that have figures per sample.
        parameters: parameters of the model.
        error: largest relative difference.
        reason: what is wrong.
    """

    status: str
    measured: int = 0
    parameters: int = 0
    error: float = 0.0
    reason: str = ""


def judge(figures: Figures, gradients: dict[str, Tensor | None], truth: Truth, tolerance: float = TOLERANCE) -> Verdict:
    """Compare all that a tool gives; estimates are left to ``judge_estimates``."""
    top = max(float(each.square().sum()) for each in truth.norms.values()) ** 0.5
    errors: dict[str, float] = {}
    for name, gradient in gradients.items():
        if gradient is None:
            return Verdict("wrong", reason=f"{name} has no .grad afterwards")
        scale = float(truth.norms[name].norm()) / truth.samples**0.5  # what single samples weigh: means may cancel
        errors[f".grad of {name}"] = _difference(gradient, truth.grad[name], max(scale, FLOOR * top))
    for name, found in figures.norms.items():
        errors[f"norms of {name}"] = _difference(found, truth.norms[name], FLOOR * top)
    for kind, found_all, right in (
        ("second moments", figures.second, truth.second),
        ("variance", figures.variance, truth.variance),
    ):
        for name, found in found_all.items():
            errors[f"{kind} of {name}"] = _difference(found, right[name], (FLOOR * top) ** 2 / truth.samples)
    if figures.total_norms is not None:
        errors["norms over the model"] = _difference(figures.total_norms, truth.total_norms, FLOOR * top)
    if figures.noise_scale is not None:
        right = max(truth.noise_scale, 0.0)
        errors["the noise scale"] = abs(figures.noise_scale - right) / max(abs(right), 1e-3)
    return _worst(errors, tolerance, figures, len(truth.grad))


def _worst(errors: dict[str, float], tolerance: float, figures: Figures, parameters: int) -> Verdict:
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    measured = len({*figures.norms, *figures.second, *figures.variance})
    if figures.total_norms is not None or figures.noise_scale is not None:
        measured = parameters
    if not errors[worst] <= tolerance:
        wrong = sum(not error <= tolerance for error in errors.values())
        others = f" and of {wrong - 1} more" if wrong > 1 else ""
        size = "not one per sample" if math.isinf(errors[worst]) else f"off by {errors[worst]:.0%}"
        return Verdict("wrong", measured, parameters, errors[worst], f"{worst}{others}: {size}")
    return Verdict("exact" if measured else "none", measured, parameters, errors[worst])


def _difference(found: Tensor, right: Tensor, floor: float) -> float:
    if found.shape != right.shape:
        return math.inf  # a figure per token, say
    known = ~torch.isnan(found)  # samples that were left out
    if not bool(known.any()):
        return math.nan
    found, right = found.detach().to(right)[known], right[known.to(right.device)]
    return float((found - right).norm()) / max(float(right.norm()), floor, 1e-300)


def judge_estimates(draws: Sequence[float], truth: Truth) -> Verdict:
    """Whether the mean of unbiased estimates of ``tr Σ`` may be the true value."""
    values = torch.tensor([draw for draw in draws if math.isfinite(draw)], dtype=torch.float64)
    if len(values) < 4:
        return Verdict("none", reason="too few estimates to check")
    mean, deviation = float(values.mean()), float(values.std()) / len(values) ** 0.5
    error = abs(mean / truth.trace_cov - 1)
    if abs(mean - truth.trace_cov) <= ERRORS * deviation + TOLERANCE * truth.trace_cov:
        return Verdict("estimate", len(truth.grad), len(truth.grad), error)
    return Verdict("wrong", len(truth.grad), len(truth.grad), error, f"tr Σ off by {error:.0%} in the mean")
