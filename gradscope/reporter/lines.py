"""A whole report as lines of styled text: what every drawing of it is made from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from gradscope.coverage import of_normalization_only
from gradscope.reporter.glyphs import Glyphs
from gradscope.reporter.grid import Line, grid
from gradscope.reporter.headline import headline
from gradscope.reporter.names import NORMALIZATION, TOTAL
from gradscope.reporter.notes import notes

if TYPE_CHECKING:
    from gradscope.report import Report, Stats

#: Below this nothing readable can be drawn, and lines are left to the terminal to wrap.
NARROWEST = 24


def report_lines(report: Report, glyphs: Glyphs, width: int, depth: int | None = None) -> list[Line]:
    """The report in lines of at most ``width`` columns, the layers folded as deep as ``depth`` says."""
    width = max(width, NARROWEST)
    rows = layer_rows(report, depth)
    lines = headline(report, glyphs, width)
    if report.windows:
        lines += _table(report, rows, glyphs, width)
    for note in notes(report, rows, glyphs):
        lines += note.lines(width)
    return lines


def layer_rows(report: Report, depth: int | None = None) -> list[Stats]:
    """The layers at one depth of folding, 0 by default; depths beyond the deepest show every layer."""
    if not report.groups:
        return list(report.layers.values())
    level = min(max(depth or 0, 0), len(report.groups) - 1)
    return list(report.groups[level].values())


def total_row(report: Report) -> Stats:
    """The totals, under the name that the table gives them."""
    return replace(report.total, name=NORMALIZATION if of_normalization_only(report.coverage) else TOTAL)


def _table(report: Report, rows: list[Stats], glyphs: Glyphs, width: int) -> list[Line]:
    laid_out = grid([*rows, total_row(report)], glyphs, width)
    rule: Line = ((glyphs.rule * laid_out.width, "dim"),)
    *layers, total = laid_out.rows
    return [laid_out.header, rule, *layers, rule, total, rule]
