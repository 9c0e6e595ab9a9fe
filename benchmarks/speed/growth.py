"""How the ratio grows with batch, length, width and depth, and where the extra work grows faster than the step itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.speed.measure import measure
from benchmarks.speed.models import MODELS

#: Tools whose growth is drawn.
TOOLS_DRAWN = ("scope", "scope-fused", "scope-moments")


@dataclass(frozen=True, slots=True)
class Axis:
    """One size of one family of models, from small to large; the other sizes stay."""

    family: str
    size: str
    values: tuple[int, ...]
    base: dict[str, int]


GPT = {"n": 8, "length": 64, "width": 128, "depth": 2, "heads": 4}
CONVOLUTIONS = {"n": 16, "size": 32, "width": 16}
PERCEPTRON = {"n": 64, "width": 256, "depth": 2}

#: Open: one line per curve.
AXES = {
    "gpt-batch": Axis("gpt", "n", (2, 4, 8, 16, 32), GPT),
    "gpt-length": Axis("gpt", "length", (16, 32, 64, 128, 256, 512), GPT),
    "gpt-width": Axis("gpt", "width", (32, 64, 128, 256, 512), GPT),
    "gpt-depth": Axis("gpt", "depth", (1, 2, 4, 8, 16), GPT),
    "conv-batch": Axis("3c3d", "n", (4, 8, 16, 32, 64), CONVOLUTIONS),
    "conv-image": Axis("3c3d", "size", (16, 32, 64, 96), CONVOLUTIONS),
    "conv-width": Axis("3c3d", "width", (4, 8, 16, 32), CONVOLUTIONS),
    "mlp-batch": Axis("mlp", "n", (16, 64, 256, 1024), PERCEPTRON),
    "mlp-width": Axis("mlp", "width", (64, 256, 1024), PERCEPTRON),
    "mlp-depth": Axis("mlp", "depth", (1, 2, 4, 8, 16), PERCEPTRON),
}

#: How much steeper, in powers of the size, the extra work may grow before it is named.
STEEPER = 0.25


def grow(
    name: str, tools: Sequence[str], device: torch.device, *, rounds: int, limit: float, tiny: bool
) -> list[dict[str, Any]]:
    """A line of results per size and tool."""
    axis = AXES[name]
    values = axis.values[:2] if tiny else axis.values
    lines = []
    for value in values:
        sizes = {**({} if tiny else axis.base), axis.size: value}
        for line in measure(
            axis.family,
            MODELS[axis.family],
            tools,
            device,
            rounds=rounds,
            limit=limit / len(values),
            tiny=tiny,
            **sizes,
        ):
            if "ratios" in line and line["tool"] != "plain":
                lines.append({**line, "kind": "growth", "family": axis.family, "axis": name, "size": value})
    return lines


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Power of the size with which time grew over the upper half of the sizes; NaN where that cannot be said."""
    first = (len(sizes) - 1) // 2
    low, high = seconds[first], seconds[-1]
    if len(sizes) < 2 or low <= 0 or high <= 0:
        return math.nan
    return math.log(high / low) / math.log(sizes[-1] / sizes[first])


def steeper(sizes: Sequence[float], plain: Sequence[float], ratios: Sequence[float]) -> tuple[float, float, bool]:
    """Exponents of the plain step and of what the tool adds, and whether the latter is worth naming.

    Work that adds less than a tenth even at the largest size is not.
    """
    extra = [one * (ratio - 1) for one, ratio in zip(plain, ratios, strict=True)]
    own, added = exponent(sizes, plain), exponent(sizes, extra)
    return own, added, bool(added > own + STEEPER and ratios[-1] > 1.1)
