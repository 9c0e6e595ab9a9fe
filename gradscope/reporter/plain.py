"""A report as plain text, without colours or any control code."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from gradscope.reporter.glyphs import Glyphs, glyphs_for
from gradscope.reporter.lines import report_lines

if TYPE_CHECKING:
    from gradscope.report import Report

_USUAL_WIDTH = 80


def render(report: Report, width: int | None = None, depth: int | None = None, *, glyphs: Glyphs | None = None) -> str:
    """The report as text, its lines at most ``width`` columns long (by default the terminal's, or 80).

    By default it is drawn with the characters that standard output can show.
    """
    chosen = glyphs or glyphs_for(getattr(sys.stdout, "encoding", None))
    columns = width or shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns
    lines = report_lines(report, chosen, columns, depth)
    return "\n".join("".join(piece for piece, _ in line).rstrip() for line in lines)
