"""The first line of a report: which windows it averages, how large they are, what measuring cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len

from gradscope.reporter.glyphs import Glyphs
from gradscope.reporter.grid import Line
from gradscope.reporter.text import wrap

if TYPE_CHECKING:
    from gradscope.report import Report

_GAP = "  "


def headline(report: Report, glyphs: Glyphs, width: int) -> list[Line]:
    """The facts about the report as a whole, on as many lines as ``width`` makes necessary."""
    lines: list[list[tuple[str, str]]] = [[("gradscope", "bold")]]
    for fact in facts(report, glyphs):
        used = sum(cell_len(piece) for piece, _ in lines[-1])
        if used + len(_GAP) + cell_len(fact) > width:
            lines += [[(_GAP + part, "")] for part in wrap(fact, width - len(_GAP))]
        else:
            lines[-1].append((_GAP + fact, ""))
    return [tuple(line) for line in lines]


def facts(report: Report, glyphs: Glyphs) -> list[str]:
    """Windows, effective minibatch and cost, in words."""
    if not report.windows:
        return ["no window measured yet"]
    steps = f" ({report.window_micro_steps} micro-steps)" if report.window_micro_steps > 1 else ""
    found = [windows(report, glyphs), f"n = {report.window_samples:,}{steps}"]
    if report.overhead is not None:
        found.append(f"{100 * report.overhead:+.0f} % time")
    return found


def windows(report: Report, glyphs: Glyphs) -> str:
    """``average over windows 181–200``; where some between were not measured, how many there are."""
    first, last = f"{report.first_window:,}", f"{report.last_window:,}"
    if report.windows == 1:
        return f"window {last}"
    if report.windows == report.last_window - report.first_window + 1:
        return f"average over windows {first}{glyphs.span}{last}"
    return f"average over {report.windows:,} windows of {first}{glyphs.span}{last}"
