"""A report as an SVG picture of a terminal."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console

from gradscope.reporter.table import table

if TYPE_CHECKING:
    from gradscope.report import Report


def svg(report: Report, width: int | None = None, depth: int | None = None) -> str:
    """The report as rich draws it, ``width`` columns wide (100 by default), as an SVG document."""
    console = Console(
        record=True, file=io.StringIO(), width=width or 100, force_terminal=True, color_system="truecolor",
        legacy_windows=False, no_color=False, _environ={},
    )  # fmt: skip
    console.print(table(report, depth))
    return console.export_svg(title="gradscope report")
