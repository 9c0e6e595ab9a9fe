"""The table's rows, fitted into a width: columns are cut and dropped in a fixed order until they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len

from gradscope.reporter.columns import COLUMNS, SQUEEZES, WIDEST, Column
from gradscope.reporter.glyphs import Glyphs
from gradscope.reporter.names import shortened, shown_name
from gradscope.reporter.text import pad

if TYPE_CHECKING:
    from gradscope.report import Stats

#: One line of output: pieces of text, each with the name of its style.
Line = tuple[tuple[str, str], ...]

#: What ``SQUEEZES`` calls the first column.
NAMES = "layer"

_GAP = 2


@dataclass(frozen=True, slots=True)
class Grid:
    """A table laid out.

    Attributes:
        header: the titles.
        rows: one line per row, in the order given.
        width: columns that the widest line takes.
    """

    header: Line
    rows: tuple[Line, ...]
    width: int


def grid(rows: Sequence[Stats], glyphs: Glyphs, width: int) -> Grid:
    """``rows`` under their titles, in at most ``width`` columns."""
    chosen = fitted(rows, glyphs, width)
    names = shortened([shown_name(row.name, glyphs) for row in rows], chosen[NAMES], glyphs)
    columns = [column for column in COLUMNS if column.key in chosen]
    titles = [(column.header(glyphs), "dim") for column in columns]
    return Grid(
        header=_line(columns, chosen, ("layer", "dim"), titles),
        rows=tuple(
            _line(columns, chosen, (name, ""), [column.cell(row, glyphs, chosen[column.key]) for column in columns])
            for name, row in zip(names, rows, strict=True)
        ),
        width=_total(chosen),
    )


def fitted(rows: Sequence[Stats], glyphs: Glyphs, width: int) -> dict[str, int]:
    """The width of the names and of each column that is shown; columns with nothing in them are not."""
    longest = max((cell_len(shown_name(row.name, glyphs)) for row in rows), default=0)
    natural = {NAMES: max(longest, len("layer"))} | {column.key: _natural(column, rows, glyphs) for column in COLUMNS}
    chosen = {key: size for key, size in natural.items() if size}
    for key, size in SQUEEZES:
        if _total(chosen) <= width:
            break
        if size and key in chosen:
            chosen[key] = min(chosen[key], size)
        else:
            chosen.pop(key, None)
    for key in (NAMES, *chosen):  # what the squeezes left over goes back, to the names first
        chosen[key] = min(natural[key], chosen[key] + max(0, width - _total(chosen)))
    return chosen


def _total(chosen: dict[str, int]) -> int:
    return sum(chosen.values()) + _GAP * (len(chosen) - 1)


def _natural(column: Column, rows: Sequence[Stats], glyphs: Glyphs) -> int:
    widest = max((cell_len(column.cell(row, glyphs, WIDEST)[0]) for row in rows), default=0)
    return max(widest, cell_len(column.header(glyphs))) if widest else 0


def _line(
    columns: Sequence[Column], widths: dict[str, int], name: tuple[str, str], cells: Sequence[tuple[str, str]]
) -> Line:
    pieces = [(pad(name[0], widths[NAMES], "left"), name[1])]
    for column, (text, style) in zip(columns, cells, strict=True):
        pieces += [(" " * _GAP, ""), (pad(text, widths[column.key], column.justify), style)]
    return tuple(pieces)
