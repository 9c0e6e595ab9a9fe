"""A series of figures as a line of small bars."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradscope.reporter.glyphs import Glyphs

#: The least factor between the lowest and the highest bar, so that small changes look small.
_LEAST_SPAN = 2.0


def sparkline(values: Sequence[float], glyphs: Glyphs, width: int) -> str:
    """The last ``width`` values as bars between their own extremes (at least a factor of two), on a logarithmic scale.

    Values that are not finite or not positive (a window that alone resolves nothing) are gaps.
    """
    recent = values[-width:]
    known = [math.log(value) for value in recent if math.isfinite(value) and value > 0]
    if not known:
        return ""
    low, high = min(known), max(known)
    return "".join(_bar(value, low, high, glyphs) for value in recent)


def _bar(value: float, low: float, high: float, glyphs: Glyphs) -> str:
    if not (math.isfinite(value) and value > 0):
        return glyphs.gap
    top = len(glyphs.levels) - 1
    span = max(high - low, math.log(_LEAST_SPAN))
    middle = (low + high) / 2
    return glyphs.levels[round(((math.log(value) - middle) / span + 0.5) * top)]
