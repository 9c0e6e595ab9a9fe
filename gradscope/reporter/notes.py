"""What stands under the table: the verdict, warnings, missing figures, the check, the coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradscope.reporter import coverage_notes
from gradscope.reporter.glyphs import Glyphs
from gradscope.reporter.grid import Line
from gradscope.reporter.names import TOTAL, shown_name
from gradscope.reporter.text import pad, wrap

if TYPE_CHECKING:
    from gradscope.report import Report, Stats

_NARROW = 50
_LABEL = 14
_READABLE = 112  # longer lines of prose are hard to follow


@dataclass(frozen=True, slots=True)
class Note:
    """A labelled sentence under the table, with the name of its style."""

    label: str
    text: str
    style: str = ""

    def lines(self, width: int) -> list[Line]:
        """The note in at most ``width`` columns, its text indented behind the label."""
        width = min(width, _READABLE)
        if width < _NARROW:
            return [((self.label, "dim"),), *((("  " + line, self.style),) for line in wrap(self.text, width - 2))]
        first, *others = wrap(self.text, width - _LABEL)
        return [
            ((pad(self.label, _LABEL, "left"), "dim"), (first, self.style)),
            *(((" " * _LABEL, ""), (line, self.style)) for line in others),
        ]


def size(count: float) -> str:
    """A number of bytes, to read."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def notes(report: Report, rows: Sequence[Stats], glyphs: Glyphs) -> list[Note]:
    """Everything that the table's ``rows`` do not say by themselves, the most important first."""
    found = [Note("verdict", glyphs.text(report.verdict))] if report.verdict else []
    found += [Note("warning", glyphs.text(warning), "yellow") for warning in report.warnings]
    if report.windows:
        said = " ".join([report.verdict, *report.warnings])
        found += missing([*rows, report.total], said, glyphs)
    if checked := coverage_notes.check(report, glyphs):
        found.append(Note("check", checked, "bold red" if "FAILS" in checked else ""))
    if report.held_bytes:
        found.append(Note("memory", f"{size(report.held_bytes)} held for parameters that are used several times"))
    if report.coverage:
        found.append(Note("coverage", coverage_notes.summary(report)))
    found += [
        Note(status, text, "red" if status == "mismatch" else "")
        for status, text in coverage_notes.exceptions(report, glyphs)
    ]
    return found


def missing(rows: Sequence[Stats], said: str, glyphs: Glyphs) -> list[Note]:
    """Why figures are absent: one note for all rows that share a reason which was not ``said`` yet."""
    alike: dict[str, list[str]] = {}
    for row in rows:
        if (
            row.reason
            and row.reason not in said
            and any(map(math.isnan, (row.grad_norm, row.trace_cov, row.grad_sq, row.snr)))
        ):
            alike.setdefault(row.reason, []).append(row.name)
    return [Note(glyphs.none, f"{_whose(names, rows, glyphs)}{glyphs.text(reason)}") for reason, names in alike.items()]


def _whose(names: Sequence[str], rows: Sequence[Stats], glyphs: Glyphs) -> str:
    if len(names) == len(rows):
        return ""
    layers = [name for name in names if name != rows[-1].name]
    shown = [coverage_notes.named([shown_name(name, glyphs) for name in layers], glyphs)] if layers else []
    return ", ".join(shown + [TOTAL] * (len(layers) < len(names))) + ": "
