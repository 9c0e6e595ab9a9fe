"""What ``gradscope top`` shows: a report cut to a screen, and what the keys do to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gradscope.reporter.glyphs import UNICODE, Glyphs
from gradscope.reporter.grid import Line, grid
from gradscope.reporter.headline import headline
from gradscope.reporter.lines import NARROWEST, layer_rows, total_row
from gradscope.reporter.notes import notes
from gradscope.reporter.text import cut_middle

if TYPE_CHECKING:
    from gradscope.report import Report, Stats

_RULES_AND_TOTAL = 5
_FEWEST_ROWS = 3


def _noise(stats: Stats) -> float:
    low, high = stats.noise_scale_interval
    if stats.resolved and math.isfinite(stats.noise_scale):
        return stats.noise_scale
    return low if low > 0 and math.isinf(high) else -math.inf


def _norm(stats: Stats) -> float:
    return -math.inf if math.isnan(stats.grad_norm) else stats.grad_norm


#: Orders of the rows, by name, and what they sort by; the first keeps the model's own.
SORTS: dict[str, Callable[[Stats], tuple[float, str]]] = {
    "model": lambda stats: (0.0, ""),
    "noise": lambda stats: (-_noise(stats), ""),
    "norm": lambda stats: (-_norm(stats), ""),
    "name": lambda stats: (0.0, stats.name),
}


@dataclass(frozen=True, slots=True)
class View:
    """How a report is looked at.

    Attributes:
        sort: one of ``SORTS``.
        depth: how far folded layers are opened.
        top: number of the first row shown, from 0.
        over: whether the user has seen enough.
    """

    sort: str = "model"
    depth: int = 0
    top: int = 0
    over: bool = False


@dataclass(frozen=True, slots=True)
class Screen:
    """A view, drawn.

    Attributes:
        lines: from the top of the screen.
        rows: how many rows there are to scroll through.
        page: how many of them are shown at once.
        depths: how many depths of folding there are.
    """

    lines: tuple[Line, ...]
    rows: int
    page: int
    depths: int


def pressed(view: View, key: str, screen: Screen) -> View:
    """The view after a key was pressed on ``screen``; keys without a meaning change nothing."""
    last = max(0, screen.rows - screen.page)
    jumps = {
        "up": view.top - 1, "k": view.top - 1, "down": view.top + 1, "j": view.top + 1, "home": 0, "end": last,
        "page up": view.top - screen.page, "page down": view.top + screen.page, " ": view.top + screen.page,
    }  # fmt: skip
    if key in jumps:
        return replace(view, top=min(max(jumps[key], 0), last))
    if key in ("q", "Q"):
        return replace(view, over=True)
    if key == "s":
        names = list(SORTS)
        return replace(view, sort=names[(names.index(view.sort) + 1) % len(names)], top=0)
    if key == "f":
        shown = min(view.depth, screen.depths - 1)
        return replace(view, depth=(shown + 1) % screen.depths, top=0)
    return view


def drawn(report: Report, view: View, width: int, height: int, glyphs: Glyphs = UNICODE, notice: str = "") -> Screen:
    """The report on a screen of that size; notes may take half of it, the verdict more if need be.

    A ``notice`` stands in the last line, before the keys.
    """
    width = max(width, NARROWEST)
    rows = sorted(layer_rows(report, view.depth), key=SORTS[view.sort])
    head = headline(report, glyphs, width)
    page = height - len(head) - _RULES_AND_TOTAL - 1
    below: list[Line] = []
    for number, note in enumerate(notes(report, rows, glyphs)):
        lines = note.lines(width)
        if page - len(lines) < min(len(rows), height // 2 if number else _FEWEST_ROWS):
            break
        below += lines
        page -= len(lines)
    page = max(1, page)
    top = min(view.top, max(0, len(rows) - page))
    body = _table(report, rows, glyphs, width, slice(top, top + page)) if report.windows else []
    filling: list[Line] = [()] * (height - len(head) - len(body) - len(below) - 1)
    depths = max(1, len(report.groups))
    hints = (_hints(view, glyphs, width, (top, min(top + page, len(rows)), len(rows)), depths, notice),)
    return Screen((*head, *body, *below, *filling, hints), len(rows), page, depths)


def _table(report: Report, rows: list[Stats], glyphs: Glyphs, width: int, shown: slice) -> list[Line]:
    # Laid out with all rows, so that scrolling moves no column.
    laid_out = grid([*rows, total_row(report)], glyphs, width)
    rule: Line = ((glyphs.rule * laid_out.width, "dim"),)
    return [laid_out.header, rule, *laid_out.rows[:-1][shown], rule, laid_out.rows[-1], rule]


def _hints(
    view: View, glyphs: Glyphs, width: int, shown: tuple[int, int, int], depths: int, notice: str
) -> tuple[str, str]:
    first, last, count = shown
    if notice:
        quitting = "   q quit"
        return cut_middle(glyphs.text(notice), width - len(quitting), glyphs.ellipsis) + quitting, "dim"
    arrows = "↑↓" if glyphs is UNICODE else "up/down"
    scroll = f"   {arrows} {first + 1}{glyphs.span}{last} of {count}" if last - first < count else ""
    hints = f"q quit   s sort: {view.sort}   f fold: {min(view.depth + 1, depths)}/{depths}{scroll}"
    return cut_middle(hints, width, glyphs.ellipsis), "dim"
