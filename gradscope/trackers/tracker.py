"""What every experiment tracker is to us."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol


class Tracker(Protocol):
    """Takes the figures of a window to where the user keeps those of the run."""

    def write(self, figures: Mapping[str, float], window: int) -> None:
        """Hand over the figures.

        Args:
            figures: finite numbers by name.
            window: number of the newest window in them, from 1.
        """


def comes_from(target: Any, package: str) -> bool:
    """Whether ``target`` is this package, or an instance of one of its classes."""
    if isinstance(target, ModuleType):
        return target.__name__ == package
    return any(kind.__module__.partition(".")[0] == package for kind in type(target).__mro__)
