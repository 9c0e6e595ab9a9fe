"""A report in one line, for the logs of clusters: ASCII, ``key=value``, no spaces inside values."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from gradscope.coverage import of_normalization_only
from gradscope.reporter.figures import power, short
from gradscope.reporter.glyphs import ASCII
from gradscope.reporter.lines import layer_rows
from gradscope.reporter.names import shortened, shown_name

if TYPE_CHECKING:
    from gradscope.report import Report, Stats

_LAYERS_NAMED = 2
_NAME_WIDTH = 40


def log_line(report: Report, depth: int | None = None) -> str:
    """``gradscope window=1200 n=32 micro_steps=4 noise=85[71,104] snr=0.38 top=wte:251,blocks.3:144 check=ok``."""
    if not report.windows:
        return "gradscope windows=0"
    fields = {
        "window": str(report.last_window),
        "n": str(report.window_samples),
        "micro_steps": str(report.window_micro_steps),
        "noise": _noise(report.total),
        "predicted_from": "normalization" if of_normalization_only(report.coverage) else "",
        "snr": _number(report.total.snr),
        "top": ",".join(_noisiest(layer_rows(report, depth))),
        "check": _check(report),
        "coverage": f"{sum(found.measured for found in report.coverage.values())}/{_trained(report)}",
        "overhead": "" if report.overhead is None else f"{100 * report.overhead:+.0f}%",
        "warnings": str(len(report.warnings) or ""),
    }
    return " ".join(["gradscope", *(f"{key}={value}" for key, value in fields.items() if value)])


def _noise(stats: Stats) -> str:
    low, high = stats.noise_scale_interval
    if stats.resolved and math.isfinite(stats.noise_scale):
        interval = f"[{_number(low)},{_number(high)}]" if math.isfinite(high) else ""
        return _number(stats.noise_scale) + interval
    if low > 0 and math.isinf(high):
        return f">={_number(low)}"
    return "unresolved"


def _number(value: float) -> str:
    # Without thousands separators: commas part the items of a list here.
    return "" if math.isnan(value) else short(value).replace(",", "")


def _noisiest(rows: list[Stats]) -> list[str]:
    known = [row for row in rows if row.resolved and math.isfinite(row.noise_scale)]
    known.sort(key=lambda row: row.noise_scale, reverse=True)
    names = shortened([shown_name(row.name, ASCII) for row in known], _NAME_WIDTH, ASCII)
    noisiest = list(zip(names, known, strict=True))[:_LAYERS_NAMED]
    return [f"{_word(name)}:{_number(row.noise_scale)}" for name, row in noisiest]


def _word(name: str) -> str:
    return re.sub(r"[\s,=:]", "_", name)


def _check(report: Report) -> str:
    failed = sum(coverage.status == "mismatch" for coverage in report.coverage.values())
    errors = [found.error for found in report.coverage.values() if found.measured and not math.isnan(found.error)]
    if failed:
        return f"FAILED:{failed}"
    return f"ok({power(max(errors), 1)})" if errors else ""


def _trained(report: Report) -> int:
    return sum(coverage.status != "frozen" for coverage in report.coverage.values())
