"""A report as a rich renderable, for terminals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from gradscope.reporter.glyphs import glyphs_for
from gradscope.reporter.grid import Line
from gradscope.reporter.lines import NARROWEST, report_lines

if TYPE_CHECKING:
    from gradscope.report import Report


@dataclass(frozen=True, slots=True)
class ReportTable:
    """What rich draws of a report: it takes the console's width, and only characters that its encoding has.

    Attributes:
        report: the report.
        depth: how far folded layers are opened; None is as folded as they come.
        width: columns to use at most; None is the console's.
    """

    report: Report
    depth: int | None = None
    width: int | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(self.width or options.max_width, options.max_width)
        for line in report_lines(self.report, glyphs_for(console.encoding), width, self.depth):
            yield styled(line)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(NARROWEST, options.max_width), options.max_width)


def table(report: Report, depth: int | None = None, width: int | None = None) -> ReportTable:
    """The report as something that ``rich.print`` and ``Console.print`` draw."""
    return ReportTable(report, depth, width)


def styled(line: Line) -> Text:
    """One line with its styles. Text is never parsed as markup."""
    text = Text(no_wrap=True, overflow="crop", end="\n")
    for piece, style in line:
        text.append(piece, style)
    text.rstrip()
    return text
