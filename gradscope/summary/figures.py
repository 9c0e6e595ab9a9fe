"""The figures of every unit, from its series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.statistics.diversity import diversity
from gradscope.statistics.gsnr import gsnr_sum
from gradscope.statistics.noise_scale import noise_scale
from gradscope.statistics.ratio_interval import ratio_interval
from gradscope.statistics.snr import snr
from gradscope.summary.series import Series, Sums, mean
from gradscope.summary.units import Folding
from gradscope.window import ParameterInfo, Window


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """One list per figure, one entry per unit; as in ``Stats``, before anything is withheld."""

    numel: list[int]
    grad_norm: list[float]
    trace_cov: list[float]
    grad_sq: list[float]
    noise_scale: list[float]
    interval: list[tuple[float, float]]
    resolved: list[bool]
    windows: list[int]
    snr: list[float]
    diversity: list[float]
    history: list[tuple[float, ...]]
    gsnr: list[float | None]
    preconditioned: list[float | None]


def figures(
    parameters: Sequence[ParameterInfo], windows: Sequence[Window], gathered: Sums, found: Series, folding: Folding
) -> Figures:
    """The figures of all units at once."""
    numel = torch.tensor([info.numel for info in parameters], dtype=torch.float64)
    counted = torch.where(gathered.present | gathered.mismatch, numel, 0.0)
    noise, grad_sq = mean(found.trace_cov, found.used), mean(found.grad_sq, found.used)
    low, high = ratio_interval(found.trace_cov, found.grad_sq, found.used)
    count = found.used.sum(0)
    resolved = (grad_sq > 0) & ((count < 2) | high.isfinite())
    alone = noise_scale(found.trace_cov, found.grad_sq)
    return Figures(
        numel=[int(x) for x in folding.rows(counted).tolist()],
        grad_norm=found.grad_sq_norm[-1].sqrt().tolist(),
        trace_cov=noise.tolist(),
        grad_sq=grad_sq.tolist(),
        noise_scale=torch.where(resolved, noise_scale(noise, grad_sq), torch.nan).tolist(),
        interval=list(zip(low.tolist(), high.tolist(), strict=True)),
        resolved=resolved.tolist(),
        windows=count.tolist(),
        snr=snr(found.grad_sq_norm[-1], found.grad_sq[-1]).tolist(),
        diversity=diversity(found.grad_sq_norm[-1], found.contribution_sq_sum[-1]).tolist(),
        history=[tuple(x) for x in torch.where(found.used, alone, torch.nan).T.tolist()],
        gsnr=_gsnr(parameters, windows[-1], gathered.present, folding),
        preconditioned=_preconditioned(gathered, found, folding),
    )


def _gsnr(parameters: Sequence[ParameterInfo], newest: Window, present: Tensor, folding: Folding) -> list[float | None]:
    """Mean of ``G²/variance`` over the elements of the unit's parameters that have elementwise moments."""
    rows = torch.zeros((len(parameters), 2), dtype=torch.float64)
    available = torch.zeros(len(parameters), dtype=torch.bool)
    for p, info in enumerate(parameters):
        found = newest.parameters.get(info.name)
        if present[p] and found is not None and found.variance is not None and found.signal is not None:
            available[p] = True
            rows[p] = torch.tensor(gsnr_sum(found.variance, found.signal), dtype=torch.float64)
    if not bool(available.any()):
        return [None] * folding.units
    folded = folding.rows(rows)
    return _where(folding.any(available), folded[:, 0] / folded[:, 1])


def _preconditioned(gathered: Sums, found: Series, folding: Folding) -> list[float | None]:
    """Ratio of the means of ``tr(PΣ)`` and ``GᵀPG``, over windows that have them where the newest has."""
    available = ~gathered.preconditioned[0].isnan() & gathered.present
    if not bool(available[-1].any()):
        return [None] * folding.units
    used = found.used & ~folding.any(available != available[-1])
    trace, quadratic = (
        mean(folding.columns(torch.where(available, values, 0.0)), used) for values in gathered.preconditioned
    )
    return _where(folding.any(available[-1]), noise_scale(trace, quadratic))


def _where(has: Tensor, values: Tensor) -> list[float | None]:
    return [value if flag else None for value, flag in zip(values.tolist(), has.tolist(), strict=True)]
