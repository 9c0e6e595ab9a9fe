"""Where a line of each window goes: run logs and streams."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TextIO

from gradscope import reporter
from gradscope.report import Report
from gradscope.runlog import RunLogWriter
from gradscope.window import ParameterInfo, Window


class Outlets:
    """Run logs on disk, and streams that get one readable line a window."""

    def __init__(self) -> None:
        self._writers: list[RunLogWriter] = []
        self._streams: list[TextIO] = []

    def add(self, target: str | os.PathLike[str] | TextIO, parameters: Sequence[ParameterInfo]) -> None:
        """Open one more.

        Raises:
            InvalidRunLogError: the file is something else, or the log of another model.
            OSError: it cannot be opened.
        """
        if isinstance(target, (str, os.PathLike)):
            self._writers.append(RunLogWriter(target, parameters))
        else:
            self._streams.append(target)

    def writes(self, window: Window, overhead: float, report: Callable[[], Report]) -> Iterator[Callable[[], Any]]:
        """What is to be done for this window, one action an outlet, so that one that fails does not stop the others."""
        for writer in self._writers:
            yield partial(writer.write, window, overhead=overhead)
        for stream in self._streams:
            yield partial(_print_line, stream, report)

    def declare(self, parameters: Sequence[ParameterInfo]) -> None:
        """The model has other parameters from now on."""
        for writer in self._writers:
            writer.declare(parameters)

    def close(self) -> None:
        """Close the files; streams are the user's."""
        for writer in self._writers:
            writer.close()


def _print_line(stream: TextIO, report: Callable[[], Report]) -> None:
    print(reporter.log_line(report()), file=stream, flush=True)
