"""What earlier windows have taught about a parameter's figures."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch

from gradscope.judgement import Judged, allowed, bound, differs

#: Windows over which differences are averaged; most of them look along a single random direction.
MEMORY = 128


class Past:
    """One parameter's squared differences, in units of what rounding explains: a window's precision may be another's no more.

    Attributes:
        squares: of the last windows.
        total: their sum, kept up to date.
        window: the last of them.
    """

    __slots__ = ("squares", "total", "window")

    def __init__(self) -> None:
        self.squares: deque[float] = deque()
        self.total = 0.0
        self.window = -1

    def add(self, window: int, square: float) -> None:
        """One window more."""
        if len(self.squares) == MEMORY:
            self.total -= self.squares.popleft()
        self.squares.append(square)
        self.total = max(self.total + square, 0.0)
        self.window = window


class Trust:
    """Which parameters' figures are not believed, and why.

    Attributes:
        distrusted: parameters in which the last guard window saw a fault that the others cannot see, and what it was.
        suspects: those that were trusted before; the next window looks again.
    """

    def __init__(self) -> None:
        self.distrusted: dict[int, str] = {}
        self.suspects: set[int] = set()
        self._past: dict[int, Past] = {}
        self._window = 0

    def remember(self, window: int, judged: Mapping[int, Sequence[Judged | None]], guarded: set[int]) -> None:
        """Note a window: a fault that only a guard sees holds until a guard finds the parameter right.

        Args:
            window: its number.
            judged: every parameter's verdicts.
            guarded: parameters that a guard looked at.
        """
        self._window = window
        for index, parts in judged.items():
            faults = [part.coverage.reason for part in parts if part is not None and part.by_guard]
            if faults:
                self.suspects |= {index} - set(self.distrusted)
                self.distrusted[index] = f"{faults[0]} (found in window {window})"
            elif index in guarded:
                self.distrusted.pop(index, None)

    def lasting(self, index: int, errors: Sequence[float], dtype: torch.dtype) -> str:
        """A difference too small for a single window's random probes to tell from rounding, if it lasts; else empty.

        Args:
            index: the parameter.
            errors: relative differences in this window's micro-steps.
            dtype: the coarsest that went into them.
        """
        past = self._past.get(index)
        if past is None:
            past = self._past[index] = Past()
        if past.window == self._window and past.squares:
            # A window that was looked at before it ended is looked at again.
            past.total -= past.squares.pop()
        # A large difference shows at once; once it is gone it must not be remembered for long.
        most, unit = (2 * allowed(dtype, 1)) ** 2, bound(dtype)
        past.add(self._window, sum(min(error * error, most) for error in errors) / len(errors) / unit)
        count = len(past.squares)
        error, limit = (past.total / count * unit) ** 0.5, allowed(dtype, count)
        return "" if error <= limit else f"{differs(error, limit)}, on average over {count} windows"

    def explained(self, indices: Sequence[int], squares: Sequence[float], bounds: Sequence[float]) -> set[int]:
        """Note differences each of which rounding explains, and so does their average.

        Args:
            indices: the parameters.
            squares: of this window's relative differences.
            bounds: what those are bounded by, and rounding's share in an average of any number: each dtype's ``bound``.

        Returns:
            Parameters of which that is not certain; theirs are not noted.
        """
        window, doubtful = self._window, set()
        for index, square, unit in zip(indices, squares, bounds, strict=True):
            past = self._past.get(index)
            if past is None:
                past = self._past[index] = Past()
            if index in self.distrusted or past.window == window or past.total > len(past.squares):
                doubtful.add(index)
            else:
                past.add(window, square / unit)
        return doubtful
