"""The table as a picture: one panel per model, one row per tool, ratios on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping

from benchmarks.speed.grid import Grid
from benchmarks.speed.problem import Builder
from benchmarks.speed.svg import Svg
from benchmarks.speed.tools import TOOLS
from benchmarks.speed.tools.tool import WORK

LEFT, TOP, PANEL, GAP, ROW = 262, 46, 112, 14, 17
OURS, THEIRS = "#3b82f6", "#9ca3af"
#: Ratios at the panel's ends; what lies beyond is drawn at the end, with its number.
LOW, HIGH = 0.9, 10.0
TICKS = (1, 1.5, 2, 4, 8)


def across(ratio: float) -> float:
    """Place within a panel, 0 to 1."""
    inside = min(max(ratio, LOW), HIGH)
    return math.log(inside / LOW) / math.log(HIGH / LOW)


def picture(grid: Grid, models: Mapping[str, Builder]) -> str:
    """SVG."""
    rows = [row for work in list(WORK)[1:] for row in (f"={work}", *grid.tools(work)) if grid.tools(work)]
    bottom = TOP + ROW * len(rows) + 6
    svg = Svg(LEFT + len(grid.models) * (PANEL + GAP) + 10, bottom + 22)
    for column, model in enumerate(grid.models):
        left = LEFT + column * (PANEL + GAP)
        name, _, sizes = models[model].title.partition(", ")
        svg.text(left, 16, name[:20], kind="head")
        svg.text(left, 30, sizes[:20])
        for tick in TICKS:
            x = left + PANEL * across(tick)
            svg.line(x, TOP - 6, x, bottom)
            svg.text(x, bottom + 13, f"{tick:g}", anchor="middle")
    for index, row in enumerate(rows):
        y = TOP + ROW * index + 8
        if row.startswith("="):
            svg.text(4, y + 4, WORK[row[1:]], kind="head")
            continue
        svg.text(14, y + 4, TOOLS[row].title[:44], kind="strong" if TOOLS[row].ours else "")
        for column, model in enumerate(grid.models):
            _mark(svg, grid, model, row, LEFT + column * (PANEL + GAP), y)
    return svg.render()


def _mark(svg: Svg, grid: Grid, model: str, tool: str, left: float, y: float) -> None:
    cell = grid.times.get((model, tool))
    if cell is None:
        return
    found = cell.get("ratios")
    if found is None:
        svg.text(left + PANEL / 2, y + 4, "wrong" if cell["status"] == "wrong" else "–", anchor="middle")
        return
    color = OURS if TOOLS[tool].ours else THEIRS
    x, low, high = (left + PANEL * across(found[name]) for name in ("median", "low", "high"))
    svg.line(low, y, high, y, color=color, width=2)
    svg.dot(x, y, color, hollow=0 < cell["measured"] < cell["parameters"])
    if found["median"] > HIGH:
        svg.text(x - 7, y + 4, f"{found['median']:.0f}", anchor="end")
