"""What a recogniser says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradscope.checks.diagnosis import Cause
from gradscope.checks.judge import Judged


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """A cause, and why it is believed.

    Attributes:
        cause: its name.
        shown: the window that shows it best.
        evidence: what was seen, in words.
        also: causes with the same signature.
    """

    cause: Cause
    shown: Judged
    evidence: str
    also: tuple[Cause, ...] = ()


Recogniser = Callable[[Sequence[Judged]], Finding | None]


def largest(windows: Sequence[Judged]) -> Judged:
    """The window to show: wrong, with the most micro-batches, an uneven split first."""
    return max(windows, key=lambda w: (not w.right, len(w.sizes) == 3, len(set(w.sizes)) == 1, len(w.sizes), -w.window))
