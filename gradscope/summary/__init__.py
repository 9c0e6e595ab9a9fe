"""From closed windows to the report that users read."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.columns import CoverageColumns
from gradscope.coverage import Coverage, of_normalization_only
from gradscope.report import Report, Stats
from gradscope.statistics.verdict import NO_WINDOW, verdict
from gradscope.summary.digest import Digest, digest
from gradscope.summary.reasons import unmeasured
from gradscope.summary.records import no_stats, records
from gradscope.summary.warnings import own_warnings
from gradscope.window import ParameterInfo, Window

__all__ = ["summarise"]


def summarise(
    parameters: Sequence[ParameterInfo],
    windows: Sequence[Window],
    *,
    overhead: float | None = None,
    warnings: Sequence[str] = (),
) -> Report:
    """The report over these windows.

    ``tr Σ`` and ``|G|²`` are the windows' means, ``noise_scale`` their ratio; squared norms add over parameters for
    layers, groups and the total. ``grad_norm``, ``sample_norms``, ``snr``, ``diversity``, ``variance``, ``gsnr`` and
    ``worst`` are the newest window's. A unit averages only windows that know the same of its parameters as the newest
    one does; where nothing reached a parameter its sums are zero, which is known. A parameter whose check failed in
    any of the windows is withheld, with every layer, group and total that includes it.

    Args:
        parameters: every parameter of the model, in the order of ``named_parameters``.
        windows: oldest first; none gives an empty report that says so.
        overhead: measured cost as a fraction of the step's time, where known.
        warnings: lines to put before the report's own.
    """
    if not windows:
        return _empty(parameters, overhead, tuple(warnings))
    found = digest(parameters, windows)
    written = records(found)
    newest, (own, layers, groups) = found.newest, found.layout.shown
    total = written[found.total] or no_stats("total", 0, unmeasured(newest), len(windows))
    return Report(
        total=total,
        layers=_named(written, layers),
        parameters=_named(written, own),
        groups=tuple(_named(written, level) for level in groups),
        coverage=_coverage(windows),
        windows=len(windows),
        micro_steps=sum(window.micro_steps for window in windows),
        samples=sum(window.samples for window in windows),
        first_window=windows[0].index,
        last_window=newest.index,
        window_samples=newest.samples,
        window_micro_steps=newest.micro_steps,
        parameter_count=_trainable(parameters, newest),
        verdict=_verdict(total, found),
        warnings=(*warnings, *own_warnings(found)),
        overhead=overhead,
        held_bytes=newest.held_bytes,
    )


def _named(written: Sequence[Stats | None], places: Sequence[int]) -> dict[str, Stats]:
    return {stats.name: stats for stats in (written[u] for u in places) if stats is not None}


def _verdict(total: Stats, found: Digest) -> str:
    """The verdict on the totals, or why there is none."""
    averaged = found.figures.windows[found.total]
    said = _of_totals(total, averaged, found)
    if not of_normalization_only(found.newest.coverage) or total.numel == 0:
        return said
    share = total.numel / _trainable(found.parameters, found.newest)
    return f"predicted from normalisation layers ({100 * share:.2g} % of the elements), not measured: {said}"


def _of_totals(total: Stats, averaged: int, found: Digest) -> str:
    if total.reason and (total.numel == 0 or averaged == 0 or bool(found.sums.mismatch.any())):
        return f"no verdict: {total.reason}"
    return verdict(found.newest.samples, averaged, total.noise_scale, total.noise_scale_interval)


def _coverage(windows: Sequence[Window]) -> dict[str, Coverage]:
    """The newest window's, except that a mismatch in any averaged window is shown."""
    coverage = dict(windows[-1].coverage)
    right: object = None
    for window in windows:
        found = window.coverage
        if isinstance(found, CoverageColumns) and (found.ways is right or not found.mismatched):
            right = found.ways
            continue
        coverage.update((name, one) for name, one in found.items() if one.status == "mismatch")
    return coverage


def _trainable(parameters: Sequence[ParameterInfo], newest: Window) -> int:
    """Elements of all parameters that asked for a gradient in the newest window."""
    frozen = {name for name, coverage in newest.coverage.items() if coverage.status == "frozen"}
    return sum(info.numel for info in parameters if info.name not in frozen)


def _empty(parameters: Sequence[ParameterInfo], overhead: float | None, warnings: tuple[str, ...]) -> Report:
    """The report before the first window has closed."""
    return Report(
        total=no_stats("total", 0, NO_WINDOW),
        layers={},
        parameters={},
        groups=({},),
        coverage={},
        windows=0,
        micro_steps=0,
        samples=0,
        first_window=0,
        last_window=0,
        window_samples=0,
        window_micro_steps=0,
        parameter_count=sum(info.numel for info in parameters),
        verdict=NO_WINDOW,
        warnings=warnings,
        overhead=overhead,
    )
