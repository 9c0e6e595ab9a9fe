"""Curves of the ratio over one size each."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.speed.growth import AXES, TOOLS_DRAWN
from benchmarks.speed.growth_table import Curve, curves
from benchmarks.speed.svg import Svg
from benchmarks.speed.tools import TOOLS

COLORS = dict(zip(TOOLS_DRAWN, ("#3b82f6", "#10b981", "#f59e0b"), strict=True))
WIDTH, HEIGHT, GAP, COLUMNS = 190, 110, 44, 4
LOW, HIGH = 0.9, 4.0


def growth_picture(path: Path) -> str:
    """SVG: a panel per axis."""
    found = list(curves(path))
    axes = [name for name in AXES if any(curve.axis == name for curve in found)]
    down = -(-len(axes) // COLUMNS)
    svg = Svg(COLUMNS * (WIDTH + GAP) + 20, down * (HEIGHT + GAP) + 40)
    for index, tool in enumerate(TOOLS_DRAWN):
        svg.dot(20 + 200 * index, 14, COLORS[tool])
        svg.text(30 + 200 * index, 18, TOOLS[tool].title)
    for index, axis in enumerate(axes):
        left, top = 30 + index % COLUMNS * (WIDTH + GAP), 44 + index // COLUMNS * (HEIGHT + GAP)
        _panel(svg, axis, [curve for curve in found if curve.axis == axis and curve.tool in COLORS], left, top)
    return svg.render()


def _height(ratio: float) -> float:
    inside = min(max(ratio, LOW), HIGH)
    return 1 - math.log(inside / LOW) / math.log(HIGH / LOW)


def _panel(svg: Svg, axis: str, drawn: list[Curve], left: float, top: float) -> None:
    svg.text(left, top - 4, f"{AXES[axis].family} over {AXES[axis].size}", kind="head")
    for tick in (1, 1.5, 2, 3):
        y = top + HEIGHT * _height(tick)
        svg.line(left, y, left + WIDTH, y)
        svg.text(left - 4, y + 4, f"{tick:g}", anchor="end")
    sizes = sorted({size for curve in drawn for size in curve.sizes})
    places = {size: left + WIDTH * index / max(len(sizes) - 1, 1) for index, size in enumerate(sizes)}
    for size, x in places.items():
        svg.text(x, top + HEIGHT + 13, str(size), anchor="middle")
    for curve in drawn:
        points = [(places[s], top + HEIGHT * _height(r)) for s, r in zip(curve.sizes, curve.ratios, strict=True)]
        svg.path(points, COLORS[curve.tool])
        for x, y in points:
            svg.dot(x, y, COLORS[curve.tool])
