"""Writing a run log: one line per window, each on the disk before the next is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from gradscope.errors import InvalidRunLogError
from gradscope.runlog.encode import header_line, window_line
from gradscope.runlog.header import newest_header
from gradscope.window import ParameterInfo, Window


class RunLogWriter:
    """Appends windows to a run log.

    A file that exists is continued if it is a run log of a model with the same parameters; missing folders are made.
    Each line reaches the operating system at once; one that a full disk or a dying process tears loses only itself.

    Args:
        path: the file.
        parameters: the model's parameter table.

    Raises:
        InvalidRunLogError: the file exists and is no run log, or that of another model.
        OSError: the file cannot be opened or written.
    """

    def __init__(self, path: str | os.PathLike[str], parameters: Sequence[ParameterInfo]) -> None:
        self.path = Path(path)
        self._parameters = tuple(parameters)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        resumed = self.path.exists() and self.path.stat().st_size > 0
        if resumed:
            _same_model(self.path, newest_header(self.path), self._parameters)
        self._torn = resumed and not _ends_a_line(self.path)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - kept open until close()
        if not resumed:
            self._append(header_line(self._parameters))

    def write(self, window: Window, *, overhead: float | None = None) -> None:
        """Append one window.

        Args:
            window: the window.
            overhead: what measuring cost, as a fraction of the step's time without it; None where unknown.

        Raises:
            OSError: it could not be written. Later windows can be, once the disk takes them.
            ValueError: the log was closed.
        """
        self._append(window_line(window, self._parameters, overhead))

    def declare(self, parameters: Sequence[ParameterInfo]) -> None:
        """Append the parameter table again, where the model has got other parameters since the last one.

        Raises:
            OSError: it could not be written.
        """
        table = tuple(parameters)
        if table != self._parameters:
            self._append(header_line(table))
            self._parameters = table

    def close(self) -> None:
        """Close the file; closing it again does nothing."""
        self._file.close()

    def __enter__(self) -> RunLogWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        # What an earlier failure left of its line is closed first, so that it takes no other line with it.
        rest = memoryview(b"\n" + line if self._torn else line)
        while rest:
            written = self._file.write(rest)
            self._torn = self._torn or written > 0
            rest = rest[written:]
        self._torn = False


def _same_model(path: Path, found: Sequence[ParameterInfo], parameters: Sequence[ParameterInfo]) -> None:
    if tuple(found) == tuple(parameters):
        return
    before, now = {info.name: info for info in found}, {info.name: info for info in parameters}
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    which = f", first {differing[0]!r}" if differing else " in their order"
    raise InvalidRunLogError(
        f"{path} is the run log of another model: its {len(before)} parameters and this model's {len(now)} "
        f"differ{which}. Log to a new file, or delete this one."
    )


def _ends_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
