"""The windows that were closed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from gradscope.accumulator import OpenWindow
from gradscope.columns import SumColumns
from gradscope.report import Report
from gradscope.summary import summarise
from gradscope.verdicts import Verdicts, verdicts
from gradscope.window import ParameterInfo, ParameterSums, Window

#: Windows that may wait until somebody looks at their figures, and what they may hold together.
MOST_WAITING, MOST_BYTES = 64, 1 << 23


class Waiting(NamedTuple):
    """A window whose figures have not been asked for.

    Attributes:
        ended: what was filled.
        close: computes them, given the verdicts.
        own: seconds that it has cost so far.
        others: seconds that the user's own step took.
        nbytes: held meanwhile, elementwise figures aside.
    """

    ended: OpenWindow
    close: Callable[..., Window]
    own: float
    others: float
    nbytes: int


class History:
    """The newest windows, and how many there were.

    Args:
        keep: how many are kept.

    Attributes:
        index: windows closed so far, those that ``every`` skipped included.
        measured: windows measured so far.
    """

    def __init__(self, keep: int) -> None:
        self._windows: deque[Window] = deque(maxlen=keep)
        self._waiting: list[Waiting] = []
        self._held = 0
        self.index = 0
        self.measured = 0
        self._overheads: deque[float] = deque(maxlen=keep)
        self._warnings: dict[str, None] = {}

    @property
    def windows(self) -> deque[Window]:
        """The windows, oldest first; only the newest holds tensors."""
        self._settle()
        return self._windows

    def add(self, window: Window, overhead: float) -> None:
        """One window more."""
        self._outdate()
        self._settle()
        self.measured += 1
        self._append(window, overhead)

    def postpone(self, window: Waiting) -> None:
        """One window more, whose figures are computed when somebody looks at them: many at once cost less than one by one."""
        self.measured += 1
        self._outdate()
        self._waiting.append(window)
        self._held += window.nbytes
        if len(self._waiting) >= MOST_WAITING or self._held > MOST_BYTES:
            self._settle()

    def _outdate(self) -> None:
        if self._waiting:
            self._waiting[-1].ended.outdate()

    def _settle(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting, self._held = self._waiting, [], 0
        began = time.perf_counter()
        found: list[Verdicts | None] = [None] * len(waiting)
        with suppress(Exception):  # what fails for all of them is tried, and said, for each alone
            found = [*verdicts([one.ended for one in waiting])]
        closed: list[tuple[Window, Waiting]] = []
        for one, verdict in zip(waiting, found, strict=True):
            try:
                closed.append((one.close(found=verdict), one))
            except Exception as error:  # the user's training must go on whatever fails here
                self.warn(f"gradscope failed: {type(error).__name__}: {str(error)[:300]}")
        each = (time.perf_counter() - began) / len(waiting)
        for window, one in closed:
            self._append(window, (one.own + each) / max(one.others, 1e-9))

    def _append(self, window: Window, overhead: float) -> None:
        if self._windows and self._windows[-1].weights is not None:
            self._windows[-1] = without_tensors(self._windows[-1])
        self._windows.append(window)
        self._overheads.append(overhead)

    def warn(self, text: str) -> None:
        """Something that every report is to say, once."""
        self._warnings[text] = None

    def resume(self, windows: Sequence[Window], index: int, measured: int) -> None:
        """Go on where another run stopped."""
        self._waiting, self._held = [], 0
        self._windows.clear()
        self._windows.extend(windows)
        self.index, self.measured = index, measured

    def report(self, parameters: Sequence[ParameterInfo], last: int = 20) -> Report:
        """The report over the last windows; its overhead is the median of theirs."""
        windows = list(self.windows)[-last:]
        overheads = sorted(list(self._overheads)[-last:])
        overhead = overheads[len(overheads) // 2] if overheads else None
        try:
            return summarise(parameters, windows, overhead=overhead, warnings=tuple(self._warnings))
        except Exception as error:  # whoever asks in the middle of a training must not lose it
            failure = f"gradscope failed, and these windows have no report: {type(error).__name__}: {str(error)[:300]}"
            return summarise(parameters, [], overhead=overhead, warnings=(*self._warnings, failure))


def without_tensors(window: Window) -> Window:
    """The window without what only the newest one keeps."""
    own = window.parameters
    bare = (
        own.bare()
        if isinstance(own, SumColumns)
        else {
            name: ParameterSums(sums.grad_sq_norm, sums.contribution_sq_sum, preconditioned=sums.preconditioned)
            for name, sums in window.parameters.items()
        }
    )
    return replace(window, parameters=bare, weights=None)
