"""Growth as Markdown: ratios over one size, and the powers with which time grows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.growth import AXES, steeper
from benchmarks.speed.results import newest
from benchmarks.speed.table import markdown
from benchmarks.speed.tools import TOOLS


@dataclass(frozen=True, slots=True)
class Curve:
    """One tool over one axis.

    Attributes:
        axis: key of ``AXES``.
        tool: key of ``TOOLS``.
        sizes: from small to large.
        plain: seconds of a plain step at each.
        ratios: medians at each.
    """

    axis: str
    tool: str
    sizes: tuple[int, ...]
    plain: tuple[float, ...]
    ratios: tuple[float, ...]


def curves(path: Path) -> Iterator[Curve]:
    """Those that have two sizes or more."""
    found = newest(path, "growth", "axis", "tool", "size")
    for axis in AXES:
        for tool in TOOLS:
            lines = sorted(
                (line for (a, t, _), line in found.items() if (a, t) == (axis, tool)), key=lambda line: line["size"]
            )
            if len(lines) > 1:
                yield Curve(
                    axis, tool, tuple(line["size"] for line in lines), tuple(line["plain"] for line in lines),
                    tuple(line["ratios"]["median"] for line in lines),
                )  # fmt: skip


def growth_table(path: Path) -> str:
    """A row per curve."""
    rows = []
    for curve in curves(path):
        own, added, worth = steeper(curve.sizes, curve.plain, curve.ratios)
        axis = AXES[curve.axis]
        steps = ", ".join(f"{size}: {ratio:.2f}" for size, ratio in zip(curve.sizes, curve.ratios, strict=True))
        power = "–" if added != added else f"{added:.1f}"
        rows.append(
            [f"{axis.family}, {axis.size}", TOOLS[curve.tool].title, steps, f"{own:.1f}", power, "yes" if worth else ""]
        )
    return markdown(
        ["family, size", "tool", "ratio at each size", "plain step grows with power", "the rest", "steeper"], rows
    )
