"""A report as named numbers, for loggers and experiment trackers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradscope.reporter.glyphs import ASCII
from gradscope.reporter.lines import layer_rows
from gradscope.reporter.names import shown_name

if TYPE_CHECKING:
    from gradscope.report import Report, Stats

#: Fewest groups that tell something; with fewer (``model`` and ``lm_head``), the next level is opened.
_FEWEST = 4


def scalars(report: Report, depth: int | None = None) -> dict[str, float]:
    """``gradscope/noise_scale/<layer>`` for each group of layers, and what is known of the whole model.

    A figure that is not resolved, withheld or not finite is left out, so that a plot has a gap there and no made-up value;
    ``gradscope/resolved`` says which share of the layers has one. ``noise_scale_low/total`` and ``noise_scale_high/total`` are
    the ends of the interval, as far as there is one: "at least 340" is a ``low`` without a ``high``.

    Args:
        report: the report.
        depth: how far layers are opened, as in ``Report.groups``; None takes blocks, the first level with four groups.
    """
    if not report.windows:
        return {}
    rows = layer_rows(report, blocks_depth(report) if depth is None else depth)
    found = {f"noise_scale/{_key(row)}": row.noise_scale for row in rows if row.resolved}
    total = report.total
    if total.resolved:
        found["noise_scale/total"] = total.noise_scale
    low, high = total.noise_scale_interval
    if low > 0 or math.isfinite(high):
        found |= {"noise_scale_low/total": low, "noise_scale_high/total": high}
    for name in ("trace_cov", "grad_sq", "grad_norm", "snr"):
        found[f"{name}/total"] = getattr(total, name)
    found |= {
        "window": report.last_window,
        "samples": report.window_samples,
        "resolved": sum(row.resolved for row in rows) / max(len(rows), 1),
        "measured": total.numel / max(report.parameter_count, 1),
        "mismatches": sum(coverage.status == "mismatch" for coverage in report.coverage.values()),
    }
    if report.overhead is not None:
        found["overhead"] = report.overhead
    return {f"gradscope/{name}": float(value) for name, value in found.items() if math.isfinite(value)}


def blocks_depth(report: Report) -> int:
    """The first level with enough groups to tell something; the layers where no level has."""
    for depth, level in enumerate(report.groups):
        if len(level) >= _FEWEST:
            return depth
    return max(len(report.groups) - 1, 0)


def _key(row: Stats) -> str:
    name = shown_name(row.name, ASCII)
    return "(total)" if name == "total" else name
