"""Where figures go: run logs, streams, and the experiment trackers that users have."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

from gradscope import reporter
from gradscope.errors import InvalidArgumentError
from gradscope.report import Report
from gradscope.runlog import RunLogWriter
from gradscope.trackers import Tracker, tracker_of
from gradscope.window import ParameterInfo, Window

#: How many windows apart figures go to a tracker, unless the user says otherwise.
TRACKED_EVERY = 10


@dataclass(slots=True)
class _Outlet:
    """A stream or a tracker, how often it is written to, and how many windows it has not been given yet."""

    write: Callable[[Report], Any]
    every: int
    waiting: int = 0


class Outlets:
    """Run logs on disk, which get every window; streams and trackers, which get a report every few windows."""

    def __init__(self) -> None:
        self._writers: list[RunLogWriter] = []
        self._outlets: list[_Outlet] = []

    def add(
        self, target: Any, parameters: Sequence[ParameterInfo], every: int | None = None, depth: int | None = None
    ) -> None:
        """Open one more.

        Args:
            target: a path, a stream, a tracker or a function.
            parameters: the model's parameter table.
            every: how many windows apart; None is 1 for streams and ``TRACKED_EVERY`` for trackers.
            depth: how far layers are opened for a tracker.

        Raises:
            InvalidArgumentError: it is nothing that can be written to, or ``every`` was given for a run log.
            InvalidRunLogError: the file is something else, or the log of another model.
            OSError: it cannot be opened.
        """
        if isinstance(target, (str, os.PathLike)):
            if every not in (None, 1):
                raise InvalidArgumentError("log_to: a run log holds every window; every= is for streams and trackers.")
            self._writers.append(RunLogWriter(target, parameters))
        elif (tracker := None if hasattr(target, "write") else tracker_of(target)) is not None:
            self._outlets.append(_Outlet(partial(_track, tracker, depth), every or TRACKED_EVERY))
        elif hasattr(target, "write"):
            self._outlets.append(_Outlet(partial(_print_line, target), every or 1))
        else:
            raise InvalidArgumentError(
                f"log_to: cannot write to a {type(target).__name__}. Pass a path, a stream, a tracker (a SummaryWriter, a run "
                "of wandb, MLflow or trackio, an object with log_metrics) or a function that takes a dictionary of figures."
            )

    @property
    def prompt(self) -> bool:
        """Whether there are run logs, which get every window as soon as it has ended."""
        return bool(self._writers)

    def writes(
        self, window: Window | None, overhead: float, report: Callable[[], Report]
    ) -> Iterator[Callable[[], Any]]:
        """What is to be done for this window, one action an outlet, so that one that fails does not stop the others."""
        if window is not None:
            for writer in self._writers:
                yield partial(writer.write, window, overhead=overhead)
        for outlet in self._outlets:
            outlet.waiting += 1
            if outlet.waiting >= outlet.every:
                outlet.waiting = 0
                yield partial(_write, outlet, report)

    def rest(self, report: Callable[[], Report]) -> Iterator[Callable[[], Any]]:
        """What is to be done at the end, for outlets that have not been given the last windows."""
        for outlet in self._outlets:
            if outlet.waiting:
                outlet.waiting = 0
                yield partial(_write, outlet, report)

    def declare(self, parameters: Sequence[ParameterInfo]) -> None:
        """The model has other parameters from now on."""
        for writer in self._writers:
            writer.declare(parameters)

    def close(self) -> None:
        """Close the files; streams and trackers are the user's."""
        for writer in self._writers:
            writer.close()


def _write(outlet: _Outlet, report: Callable[[], Report]) -> None:
    outlet.write(report())


def _track(tracker: Tracker, depth: int | None, report: Report) -> None:
    tracker.write(reporter.scalars(report, depth), report.last_window)


def _print_line(stream: TextIO, report: Report) -> None:
    print(reporter.log_line(report), file=stream, flush=True)
