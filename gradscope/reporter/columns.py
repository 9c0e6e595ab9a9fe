"""The columns of the table behind the names: an open set, one function and one line in ``COLUMNS`` each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradscope.reporter.figures import short
from gradscope.reporter.glyphs import Glyphs
from gradscope.reporter.sparkline import sparkline
from gradscope.reporter.text import cut_middle

if TYPE_CHECKING:
    from gradscope.report import Stats

_STRIKING_RATIO = 5.0
_MARGIN = 10_000  # wider than any terminal


@dataclass(frozen=True, slots=True)
class Column:
    """One column of figures.

    Attributes:
        key: what ``SQUEEZES`` calls it.
        header: its title.
        justify: ``"left"`` or ``"right"``.
        cell: text of one row, in at most that many columns (widest where it may choose), and its style.
    """

    key: str
    header: Callable[[Glyphs], str]
    justify: str
    cell: Callable[[Stats, Glyphs, int], tuple[str, str]]


def _norm(stats: Stats, glyphs: Glyphs, width: int) -> tuple[str, str]:
    return (glyphs.none, "dim") if math.isnan(stats.grad_norm) else (short(stats.grad_norm), "")


def _noise(stats: Stats, glyphs: Glyphs, width: int) -> tuple[str, str]:
    low, high = stats.noise_scale_interval
    if stats.resolved and math.isfinite(stats.noise_scale):
        return short(stats.noise_scale), "bold"
    if stats.reason and math.isnan(stats.trace_cov):
        return glyphs.none, "dim"
    if low > 0 and math.isinf(high):
        return f"{glyphs.at_least}{short(low)}", ""
    return "not resolved", "dim"


def _interval(stats: Stats, glyphs: Glyphs, width: int) -> tuple[str, str]:
    low, high = stats.noise_scale_interval
    known = stats.resolved and math.isfinite(stats.noise_scale) and math.isfinite(low) and math.isfinite(high)
    return (f"[{short(low)}, {short(high)}]", "dim") if known else ("", "")


def _snr(stats: Stats, glyphs: Glyphs, width: int) -> tuple[str, str]:
    if math.isnan(stats.snr):
        return glyphs.none, "dim"
    # An unbiased estimate may be negative: it then says no more than that the signal is not seen.
    return ("< 0", "dim") if stats.snr < 0 else (short(stats.snr), "")


def _trend(stats: Stats, glyphs: Glyphs, width: int) -> tuple[str, str]:
    return sparkline(stats.history, glyphs, min(width, 20)), "cyan"


def _worst(stats: Stats, glyphs: Glyphs, width: int) -> tuple[str, str]:
    if not stats.worst:
        return "", ""
    sample = stats.worst[0]
    ratio = f" {short(sample.ratio)}{glyphs.times}"
    name = f"#{sample.index}" if sample.id is None else glyphs.text(sample.id)
    shown = cut_middle(name, min(width, 32) - len(ratio), glyphs.ellipsis)
    return shown + ratio, "yellow" if sample.ratio >= _STRIKING_RATIO else ""


def _gsnr(stats: Stats, glyphs: Glyphs, width: int) -> tuple[str, str]:
    return ("", "") if stats.gsnr is None or math.isnan(stats.gsnr) else (short(stats.gsnr), "")


def _preconditioned(stats: Stats, glyphs: Glyphs, width: int) -> tuple[str, str]:
    value = stats.preconditioned_noise_scale
    if value is None or math.isnan(value):
        return "", ""
    return (short(value), "") if value > 0 else ("< 0", "dim")


COLUMNS: tuple[Column, ...] = (
    Column("norm", lambda glyphs: glyphs.norm, "right", _norm),
    Column("noise", lambda glyphs: "noise scale", "right", _noise),
    Column("interval", lambda glyphs: "95 %", "left", _interval),
    Column("snr", lambda glyphs: "snr", "right", _snr),
    Column("gsnr", lambda glyphs: "gsnr", "right", _gsnr),
    Column("preconditioned", lambda glyphs: "precond.", "right", _preconditioned),
    Column("trend", lambda glyphs: "trend", "left", _trend),
    Column("worst", lambda glyphs: "worst", "left", _worst),
)

#: How a table that is too wide gets narrower, step by step: (column, its new width); 0 leaves the column out.
SQUEEZES: tuple[tuple[str, int], ...] = (
    ("worst", 24), ("layer", 40), ("trend", 12), ("layer", 28), ("preconditioned", 0), ("gsnr", 0), ("worst", 16),
    ("trend", 8), ("layer", 22), ("worst", 12), ("layer", 18), ("worst", 10), ("layer", 16), ("worst", 0),
    ("trend", 0), ("layer", 14), ("snr", 0), ("norm", 0), ("layer", 12), ("interval", 0), ("layer", 4),
)  # fmt: skip

WIDEST = _MARGIN
