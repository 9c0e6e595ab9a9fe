"""From figures to the frozen ``Stats`` of each unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gradscope.report import Outlier, Stats
from gradscope.summary.digest import Digest
from gradscope.summary.reasons import not_a_figure, withheld
from gradscope.summary.samples import unit_outliers
from gradscope.summary.units import Unit

NAN = float("nan")


def records(found: Digest) -> Mapping[Unit, Stats]:
    """``Stats`` of every unit that has figures, or whose figures are withheld."""
    worst = unit_outliers(found.model, found.order, found.norms, found.newest)
    shown = found.folding.any(found.sums.present).tolist()
    failed = found.sums.mismatch.tolist()
    written: dict[Unit, Stats] = {}
    for u, unit in enumerate(found.order):
        bad = [found.parameters[p].name for p in unit.members if failed[p]]
        if bad:
            written[unit] = no_stats(unit.name, found.figures.numel[u], withheld(bad), len(found.windows))
        elif shown[u]:
            written[unit] = _stats(found, u, worst[u])
    return {unit: _with_variance(found, unit, stats) for unit, stats in written.items()}


def _stats(found: Digest, u: int, worst: tuple[Outlier, ...]) -> Stats:
    values = found.figures
    return Stats(
        name=found.order[u].name,
        numel=values.numel[u],
        grad_norm=values.grad_norm[u],
        sample_norms=found.norms[u],
        trace_cov=values.trace_cov[u],
        grad_sq=values.grad_sq[u],
        noise_scale=values.noise_scale[u],
        noise_scale_interval=values.interval[u],
        resolved=values.resolved[u],
        snr=values.snr[u],
        diversity=values.diversity[u],
        gsnr=values.gsnr[u],
        preconditioned_noise_scale=values.preconditioned[u],
        history=values.history[u],
        worst=worst,
        reason=not_a_figure(u, values, found.series, found.newest),
    )


def _with_variance(found: Digest, unit: Unit, written: Stats) -> Stats:
    """A parameter's own record holds its elementwise variance too; a layer's, of many shapes, does not."""
    first = unit.members[0]
    sums = found.newest.parameters.get(unit.name)
    if sums is None or sums.variance is None or found.sums.mismatch[first] or unit != found.model.parameters[first]:
        return written
    return replace(written, variance=sums.variance)


def no_stats(name: str, numel: int, reason: str, windows: int = 0) -> Stats:
    """No figures: every number is NaN, and the reason says why."""
    return Stats(
        name=name,
        numel=numel,
        grad_norm=NAN,
        sample_norms=None,
        trace_cov=NAN,
        grad_sq=NAN,
        noise_scale=NAN,
        noise_scale_interval=(0.0, float("inf")),
        resolved=False,
        snr=NAN,
        diversity=NAN,
        history=(NAN,) * windows,
        reason=reason,
    )
