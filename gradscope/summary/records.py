"""From figures to the frozen ``Stats`` of each unit."""

from __future__ import annotations

from torch import Tensor

from gradscope.columns import SumColumns
from gradscope.report import Outlier, Stats
from gradscope.summary.digest import Digest
from gradscope.summary.reasons import not_a_figure, withheld
from gradscope.summary.samples import unit_outliers

NAN = float("nan")


def records(found: Digest) -> list[Stats | None]:
    """``Stats`` of every unit that has figures, or whose figures are withheld."""
    order, folding = found.layout.order, found.layout.folding
    worst = unit_outliers(found.layout.units, order, found.norms, found.newest)
    shown = folding.any(found.sums.present).tolist()
    failed = set(found.sums.mismatch.nonzero()[0].tolist())
    norms = found.norms.tensors()
    written: list[Stats | None] = [None] * len(order)
    for u, unit in enumerate(order):
        bad = [found.parameters[p].name for p in unit.members if p in failed] if failed else []
        if bad:
            written[u] = no_stats(unit.name, found.figures.numel[u], withheld(bad), len(found.windows))
        elif shown[u]:
            written[u] = _stats(found, u, worst[u], norms[u])
    return written


def _stats(found: Digest, u: int, worst: tuple[Outlier, ...], norms: Tensor | None) -> Stats:
    values = found.figures
    return Stats(
        name=found.layout.order[u].name,
        numel=values.numel[u],
        grad_norm=values.grad_norm[u],
        sample_norms=norms,
        trace_cov=values.trace_cov[u],
        grad_sq=values.grad_sq[u],
        noise_scale=values.noise_scale[u],
        noise_scale_interval=values.interval[u],
        resolved=values.resolved[u],
        snr=values.snr[u],
        diversity=values.diversity[u],
        variance=_variance(found, u),
        gsnr=values.gsnr[u],
        preconditioned_noise_scale=values.preconditioned[u],
        history=values.history[u],
        worst=worst,
        reason=not_a_figure(u, values, found.series, found.newest),
    )


def _variance(found: Digest, u: int) -> Tensor | None:
    """A parameter's own record holds its elementwise variance too; a layer's, of many shapes, does not."""
    if u >= len(found.parameters):
        return None
    own = found.newest.parameters
    sums = (own.full if isinstance(own, SumColumns) else own).get(found.parameters[u].name)
    return None if sums is None else sums.variance


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
