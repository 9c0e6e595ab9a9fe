"""The figures of every unit, from its series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscope.columns import SumColumns
from gradscope.statistics.diversity import diversity
from gradscope.statistics.gsnr import gsnr_sum
from gradscope.statistics.noise_scale import noise_scale
from gradscope.statistics.ratio_interval import ratio_interval
from gradscope.statistics.snr import snr
from gradscope.summary.series import Series, Sums, mean
from gradscope.summary.units import Folding, Layout
from gradscope.window import Window


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


@np.errstate(all="ignore")
def figures(model: Layout, windows: Sequence[Window], gathered: Sums, found: Series) -> Figures:
    """The figures of all units at once."""
    folding = model.folding
    counted = np.where(gathered.present | gathered.mismatch, model.numel, 0)
    noise, grad_sq = mean(found.trace_cov, found.used), mean(found.grad_sq, found.used)
    low, high = ratio_interval(found.trace_cov, found.grad_sq, found.used)
    count = found.used.sum(0)
    resolved = (grad_sq > 0) & ((count < 2) | np.isfinite(high))
    alone = noise_scale(found.trace_cov, found.grad_sq)
    return Figures(
        numel=folding.columns(counted).tolist(),
        grad_norm=np.sqrt(found.grad_sq_norm[-1]).tolist(),
        trace_cov=noise.tolist(),
        grad_sq=grad_sq.tolist(),
        noise_scale=np.where(resolved, noise_scale(noise, grad_sq), np.nan).tolist(),
        interval=list(zip(low.tolist(), high.tolist(), strict=True)),
        resolved=resolved.tolist(),
        windows=count.tolist(),
        snr=snr(found.grad_sq_norm[-1], found.grad_sq[-1]).tolist(),
        diversity=diversity(found.grad_sq_norm[-1], found.contribution_sq_sum[-1]).tolist(),
        history=[tuple(x) for x in np.where(found.used, alone, np.nan).T.tolist()],
        gsnr=_gsnr(model, windows[-1], gathered.present),
        preconditioned=_preconditioned(gathered, found, folding),
    )


def _gsnr(model: Layout, newest: Window, present: NDArray[np.bool_]) -> list[float | None]:
    """Mean of ``G²/variance`` over the elements of the unit's parameters that have elementwise moments."""
    folding = model.folding
    rows, available = np.zeros((2, len(present))), np.zeros(len(present), dtype=bool)
    full = newest.parameters.full if isinstance(newest.parameters, SumColumns) else newest.parameters
    for p, name in enumerate(model.names):
        found = full.get(name)
        if present[p] and found is not None and found.variance is not None and found.signal is not None:
            available[p] = True
            rows[:, p] = gsnr_sum(found.variance, found.signal)
    if not available.any():
        return [None] * folding.units
    total, count = folding.columns(rows)
    return _where(folding.any(available), total / count)


def _preconditioned(gathered: Sums, found: Series, folding: Folding) -> list[float | None]:
    """Ratio of the means of ``tr(PΣ)`` and ``GᵀPG``, over windows that have them where the newest has."""
    available = ~np.isnan(gathered.preconditioned[0]) & gathered.present
    if not available[-1].any():
        return [None] * folding.units
    used = found.used & ~folding.any(available != available[-1])
    trace, quadratic = (
        mean(folding.columns(np.where(available, values, 0.0)), used) for values in gathered.preconditioned
    )
    return _where(folding.any(available[-1]), noise_scale(trace, quadratic))


def _where(has: NDArray[np.bool_], values: NDArray[np.float64]) -> list[float | None]:
    return [value if flag else None for value, flag in zip(values.tolist(), has.tolist(), strict=True)]
