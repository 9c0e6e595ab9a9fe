"""Writes the generated parts of ``docs/speed.md`` and its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.speed.grid import Grid
from benchmarks.speed.growth_picture import growth_picture
from benchmarks.speed.growth_table import growth_table
from benchmarks.speed.picture import picture
from benchmarks.speed.problem import Builder
from benchmarks.speed.results import newest
from benchmarks.speed.table import contest_table, mean_table, memory_table, reasons, time_table


class MissingPlaceError(Exception):
    """The document has no place for a generated part."""


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The document with what lies between ``<!-- NAME -->`` and ``<!-- /NAME -->`` replaced.

    Raises:
        MissingPlaceError: a part has no such place.
    """
    for name, part in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = pattern.subn(lambda match, part=part: f"{match[1]}\n{part}\n\n{match[2]}", text)
        if count != 1:
            raise MissingPlaceError(
                f"the document has {count} places <!-- {name} --> … <!-- /{name} -->; one is needed"
            )
    return text


def parts(results: Path, models: Mapping[str, Builder]) -> dict[str, str]:
    """Everything that is generated, by name."""
    grid = Grid.read(results, list(models))
    lines = newest(results, "time", "model", "tool").values()
    machines = sorted(
        {", ".join(f"{k} {v}" if k != "device" else v for k, v in line["machine"].items()) for line in lines}
    )
    return {
        "machine": "\n".join(f"Measured on {each}." for each in machines),
        "times": time_table(grid, models),
        "reasons": reasons(grid, models),
        "contests": contest_table(grid, models),
        "means": mean_table(grid, models),
        "memory": memory_table(grid, models),
        "growth": growth_table(results),
    }


def empty(names: Iterable[str]) -> str:
    """A document that has nothing but the places."""
    return "# What it costs\n\n" + "\n".join(f"<!-- {name} -->\n<!-- /{name} -->\n" for name in names)


def write(results: Path, models: Mapping[str, Builder], document: Path) -> list[Path]:
    """Fill the document, which is made where it is missing, and draw the pictures beside it; returns what was written."""
    generated = parts(results, models)
    text = document.read_text(encoding="utf-8") if document.exists() else empty(generated)
    document.write_text(filled(text, generated), encoding="utf-8")
    ratios, growth = (document.with_name(f"{document.stem}{end}.svg") for end in ("", "-growth"))
    ratios.write_text(picture(Grid.read(results, list(models)), models), encoding="utf-8")
    growth.write_text(growth_picture(results), encoding="utf-8")
    return [document, ratios, growth]
