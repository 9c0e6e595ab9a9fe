"""The windows' sums as tensors: one row per window, one column per unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.statistics.signal import signal
from gradscope.statistics.trace_cov import trace_cov
from gradscope.summary.units import Folding
from gradscope.window import ParameterInfo, Window


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What the windows hold of each parameter, ``[T, P]`` each, float64.

    Attributes:
        known: whether the window knows the parameter's sums: it was measured, or nothing reached it and they are zero.
        present: ``[P]``: parameters that the report has figures for: known in the newest window, measured in one.
        mismatch: ``[P]``: the check failed in at least one window.
        estimated: ``[P]``: random signs were used in at least one window.
        grad_sq_norm: ``‖ḡ‖²``, zero where not measured.
        contribution_sq_sum: ``Σ‖hᵢ‖²``, zero where not measured.
        preconditioned: ``tr(PΣ)`` and ``GᵀPG``, NaN where there is none.
    """

    known: Tensor
    present: Tensor
    mismatch: Tensor
    estimated: Tensor
    grad_sq_norm: Tensor
    contribution_sq_sum: Tensor
    preconditioned: tuple[Tensor, Tensor]


def sums(parameters: Sequence[ParameterInfo], windows: Sequence[Window]) -> Sums:
    """The windows' sums, gathered. A parameter that nothing reached has the sums zero, which is what it contributes."""
    size = (len(windows), len(parameters))
    rows = [[_row(window, info.name) for info in parameters] for window in windows]
    flags = torch.tensor([[row[:4] for row in line] for line in rows], dtype=torch.bool).reshape(*size, 4)
    numbers = torch.tensor([[row[4:] for row in line] for line in rows], dtype=torch.float64).reshape(*size, 4)
    measured, silent, mismatch, estimated = flags.unbind(2)
    known = measured | silent
    present = known[-1] & measured.any(0)
    first, second, trace, quadratic = numbers.unbind(2)
    return Sums(known, present, mismatch.any(0), estimated.any(0), first, second, (trace, quadratic))


def _row(window: Window, name: str) -> tuple[bool, bool, bool, bool, float, float, float, float]:
    """Measured, silent, mismatch, estimated; the four sums."""
    coverage = window.coverage.get(name)
    found = window.parameters.get(name)
    status = coverage.status if coverage is not None else "not measured"
    if found is None or status == "mismatch":
        return False, status == "no gradient", status == "mismatch", False, 0.0, 0.0, torch.nan, torch.nan
    trace, quadratic = found.preconditioned or (torch.nan, torch.nan)
    return True, False, False, status == "estimated", found.grad_sq_norm, found.contribution_sq_sum, trace, quadratic


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Figures per window and unit, ``[T, U]`` each.

    Attributes:
        grad_sq_norm: ``‖ḡ‖²``.
        contribution_sq_sum: ``Σ‖hᵢ‖²``.
        grad_sq: ``|G|²``; NaN in windows of one sample.
        trace_cov: ``tr Σ``; NaN in windows of one sample.
        same: whether the window knows the same parameters of the unit as the newest one: only then are the two
            comparable.
        used: whether the window enters the means: ``same``, and its figures are finite.
    """

    grad_sq_norm: Tensor
    contribution_sq_sum: Tensor
    grad_sq: Tensor
    trace_cov: Tensor
    same: Tensor
    used: Tensor


def series(gathered: Sums, windows: Sequence[Window], folding: Folding) -> Series:
    """The units' figures in every window."""
    samples = torch.tensor([w.samples for w in windows], dtype=torch.float64).unsqueeze(1)
    weight_sq_sum = torch.tensor([w.weight_sq_sum for w in windows], dtype=torch.float64).unsqueeze(1)
    kept = gathered.present & gathered.known
    grad_sq_norm = folding.columns(torch.where(kept, gathered.grad_sq_norm, 0.0))
    contribution_sq_sum = folding.columns(torch.where(kept, gathered.contribution_sq_sum, 0.0))
    grad_sq = signal(grad_sq_norm, contribution_sq_sum, weight_sq_sum)
    noise = trace_cov(grad_sq_norm, grad_sq, samples)
    same = ~folding.any(gathered.known != gathered.known[-1])
    used = same & noise.isfinite() & grad_sq.isfinite()
    return Series(grad_sq_norm, contribution_sq_sum, grad_sq, noise, same, used)


def mean(values: Tensor, used: Tensor) -> Tensor:
    """Mean of each column over the windows in use; NaN where there is none."""
    return torch.where(used, values, 0.0).sum(0) / used.sum(0)
