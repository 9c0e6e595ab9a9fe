"""A report as HTML, for notebooks: no script, no style sheet, the notebook's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from gradscope.reporter.columns import COLUMNS, Column
from gradscope.reporter.glyphs import UNICODE
from gradscope.reporter.grid import fitted
from gradscope.reporter.headline import facts
from gradscope.reporter.lines import layer_rows, total_row
from gradscope.reporter.names import NORMALIZATION, TOTAL, shown_name
from gradscope.reporter.notes import Note, notes

if TYPE_CHECKING:
    from gradscope.report import Report, Stats

_WIDTH = 132
_CELL = "padding:.1em .6em;text-align:"
_STYLES = {
    "": "",
    "dim": "opacity:.6",
    "bold": "font-weight:600",
    "cyan": "font-family:monospace;color:#3b8ea5",
    "yellow": "color:#b7791f",
    "red": "color:#c53030",
    "bold red": "color:#c53030;font-weight:600",
}


def html(report: Report) -> str:
    """The report as a piece of HTML; layers that the table folds are listed in a part that opens."""
    rows = layer_rows(report)
    every = layer_rows(report, len(report.groups))
    parts = [f"<b>gradscope</b> &emsp;{'&emsp;'.join(map(escape, facts(report, UNICODE)))}"]
    if report.windows:
        parts.append(_table([*rows, total_row(report)]))
    parts.append(_notes(notes(report, rows, UNICODE)))
    if len(every) > len(rows):
        parts.append(f"<details><summary>all {len(every):,} layers</summary>{_table(every)}</details>")
    return f'<div style="font-size:90%;line-height:1.5;font-variant-numeric:tabular-nums">{"".join(parts)}</div>'


def _table(rows: Sequence[Stats]) -> str:
    widths = fitted(rows, UNICODE, _WIDTH)
    columns = [column for column in COLUMNS if column.key in widths]
    titles = _cell("th", "left", "layer", "dim")
    titles += "".join(_cell("th", column.justify, column.header(UNICODE), "dim") for column in columns)
    body = "".join(_row(row, columns, widths) for row in rows)
    opening = '<table style="border-collapse:collapse;margin:.5em 0">'
    return f"{opening}<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _row(row: Stats, columns: Sequence[Column], widths: dict[str, int]) -> str:
    line = ' style="border-top:1px solid;font-weight:600"' if row.name in (TOTAL, NORMALIZATION) else ""
    name = _cell("td", "left", shown_name(row.name, UNICODE), "")
    cells = (_cell("td", column.justify, *column.cell(row, UNICODE, widths[column.key])) for column in columns)
    return f"<tr{line}>{name}{''.join(cells)}</tr>"


def _cell(tag: str, justify: str, text: str, style: str) -> str:
    return f'<{tag} style="{_CELL}{justify};white-space:nowrap;{_STYLES[style]}">{escape(text)}</{tag}>'


def _notes(found: Sequence[Note]) -> str:
    rows = "".join(
        f'<tr><td style="{_CELL}left;vertical-align:top;white-space:nowrap;opacity:.6">{escape(note.label.strip())}</td>'
        f'<td style="{_CELL}left;{_STYLES[note.style]}">{escape(note.text)}</td></tr>'
        for note in found
    )
    return f'<table style="border-collapse:collapse">{rows}</table>' if rows else ""
