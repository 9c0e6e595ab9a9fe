"""What earlier windows have taught about a parameter's figures."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch

from gradscope.judgement import Judged, allowed, differs

#: Windows over which differences are averaged; most of them look along a single random direction.
MEMORY = 128


class Trust:
    """Which parameters' figures are not believed, and why.

    Attributes:
        distrusted: parameters in which the last guard window saw a fault that the others cannot see, and what it was.
        suspects: those that were trusted before; the next window looks again.
    """

    def __init__(self) -> None:
        self.distrusted: dict[int, str] = {}
        self.suspects: set[int] = set()
        self._differences: dict[int, deque[float]] = {}
        #: Their sums, kept up to date.
        self._sums: dict[int, float] = {}
        self._window = 0
        self._noted: dict[int, int] = {}

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
        squares = self._differences.get(index)
        if squares is None:
            squares = self._differences[index] = deque()
            self._sums[index] = 0.0
        total = self._sums[index]
        if self._noted.get(index) == self._window and squares:
            # A window that was looked at before it ended is looked at again.
            total -= squares.pop()
        elif len(squares) == MEMORY:
            total -= squares.popleft()
        self._noted[index] = self._window
        # A large difference shows at once; once it is gone it must not be remembered for long.
        most = (2 * allowed(dtype, 1)) ** 2
        squares.append(sum(min(error * error, most) for error in errors) / len(errors))
        self._sums[index] = total = max(total + squares[-1], 0.0)
        error, limit = (total / len(squares)) ** 0.5, allowed(dtype, len(squares))
        return "" if error <= limit else f"{differs(error, limit)}, on average over {len(squares)} windows"
