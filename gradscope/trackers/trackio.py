"""Trackio."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from gradscope.errors import InvalidArgumentError
from gradscope.trackers.tracker import comes_from


class Trackio:
    """A run of ``trackio``: figures lie at the step that the user logged last, so that the count of steps stays the user's.

    Where the user has logged nothing since our last figures, they take a step of their own.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._seen = 0

    @classmethod
    def of(cls, target: Any) -> Trackio | None:
        """The tracker of a run, or of the module's current run; None where it is something else.

        Raises:
            InvalidArgumentError: the module has no run yet.
        """
        if not comes_from(target, "trackio") or not hasattr(target, "log"):
            return None
        run = target.context_vars.current_run.get() if isinstance(target, ModuleType) else target
        if run is None:
            raise InvalidArgumentError("log_to: trackio has no run yet. Call trackio.init() first, or pass its run.")
        return cls(run)

    def write(self, figures: Mapping[str, float], window: int) -> None:
        """One row."""
        following = int(getattr(self._run, "_next_step", 0))
        self._run.log(dict(figures), step=following - 1 if following > self._seen else None)
        self._seen = int(getattr(self._run, "_next_step", 0))
