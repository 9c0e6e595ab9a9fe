"""The newest results, by model and tool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.results import newest
from benchmarks.speed.tools import TOOLS

Cell = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Grid:
    """What the table, the picture and the comparison read.

    Attributes:
        times: by model and tool.
        memory: by model and tool.
        models: those that have times, in the order in which they are listed.
    """

    times: dict[tuple[str, ...], Cell]
    memory: dict[tuple[str, ...], Cell]
    models: list[str]

    @staticmethod
    def read(path: Path, models: Sequence[str]) -> Grid:
        """From a file of results."""
        times = newest(path, "time", "model", "tool")
        measured = {model for model, _ in times}
        return Grid(times, newest(path, "memory", "model", "tool"), [name for name in models if name in measured])

    def median(self, model: str, tool: str) -> float | None:
        """The ratio's median; None where the tool was not timed."""
        found = self.times.get((model, tool), {}).get("ratios")
        return float(found["median"]) if found else None

    def tools(self, work: str) -> list[str]:
        """Those of this work that were tried on any model."""
        tried = {tool for _, tool in self.times}
        return [name for name, tool in TOOLS.items() if tool.work == work and name in tried]

    def complete(self, model: str, tool: str) -> bool:
        """Whether the tool's figures are of all parameters, each for itself."""
        found = self.times.get((model, tool), {})
        return found.get("measured") == found.get("parameters") and not TOOLS[tool].note
