"""The windows that were closed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from gradscope.report import Report
from gradscope.summary import summarise
from gradscope.window import ParameterInfo, ParameterSums, Window


class History:
    """The newest windows, and how many there were.

    Args:
        keep: how many are kept.

    Attributes:
        windows: oldest first; only the newest holds tensors.
        index: windows closed so far, those that ``every`` skipped included.
        measured: windows measured so far.
    """

    def __init__(self, keep: int) -> None:
        self.windows: deque[Window] = deque(maxlen=keep)
        self.index = 0
        self.measured = 0
        self._overheads: deque[float] = deque(maxlen=keep)
        self._warnings: dict[str, None] = {}

    def add(self, window: Window, overhead: float) -> None:
        """One window more."""
        self.measured += 1
        if self.windows:
            self.windows[-1] = without_tensors(self.windows[-1])
        self.windows.append(window)
        self._overheads.append(overhead)

    def warn(self, text: str) -> None:
        """Something that every report is to say, once."""
        self._warnings[text] = None

    def resume(self, windows: Sequence[Window], index: int, measured: int) -> None:
        """Go on where another run stopped."""
        self.windows.clear()
        self.windows.extend(windows)
        self.index, self.measured = index, measured

    def report(self, parameters: Sequence[ParameterInfo], last: int = 20) -> Report:
        """The report over the last windows; its overhead is the median of theirs."""
        overheads = sorted(list(self._overheads)[-last:])
        overhead = overheads[len(overheads) // 2] if overheads else None
        windows = list(self.windows)[-last:]
        return summarise(parameters, windows, overhead=overhead, warnings=tuple(self._warnings))


def without_tensors(window: Window) -> Window:
    """The window without what only the newest one keeps."""
    bare = {
        name: ParameterSums(sums.grad_sq_norm, sums.contribution_sq_sum, preconditioned=sums.preconditioned)
        for name, sums in window.parameters.items()
    }
    return replace(window, parameters=bare, weights=None)
