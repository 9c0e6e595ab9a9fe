"""Reading a run log: at once, or while it grows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gradscope.errors import InvalidRunLogError
from gradscope.runlog import decode
from gradscope.runlog.header import not_a_log, read_header
from gradscope.runlog.schema import HEADER
from gradscope.window import ParameterInfo, Window


@dataclass(frozen=True, slots=True, eq=False)
class RunLog:
    """What a run log holds.

    Attributes:
        path: the file.
        parameters: the model's parameter table.
        windows: the windows, oldest first; all their scalars are as they were, their tensors are None. Of ``ids`` those
            of samples that stand out are kept, and the others are empty.
        overheads: for each window what measuring had cost, or None.
        problems: lines that could not be read or were replaced, in words.
    """

    path: Path
    parameters: tuple[ParameterInfo, ...]
    windows: tuple[Window, ...]
    overheads: tuple[float | None, ...]
    problems: tuple[str, ...] = ()

    @property
    def overhead(self) -> float | None:
        """The newest known cost of measuring, as a fraction of the step's time without it."""
        return next((known for known in reversed(self.overheads) if known is not None), None)


def read_run_log(path: str | os.PathLike[str]) -> RunLog:
    """A whole run log.

    A line that cannot be read is left out, and ``problems`` says which; of a torn last line nothing else is lost.

    Raises:
        InvalidRunLogError: there is no such file, it is no run log, or one of a schema that cannot be read.
    """
    follower = RunLogFollower(path)
    follower.poll()
    return follower.finish()


class RunLogFollower:
    """Reads a run log that may still grow: each ``poll`` takes in the lines that were completed since the last.

    A file that was truncated or replaced is read from its beginning.

    Args:
        path: the file.
        keep: how many of the newest windows to hold; None is all.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int | None = None) -> None:
        self._path = Path(path)
        self._keep = keep
        self._start_over()

    def _start_over(self) -> None:
        self._parameters: tuple[ParameterInfo, ...] | None = None
        self._columns: list[str] | None = None
        self._windows: list[Window] = []
        self._overheads: list[float | None] = []
        self._problems: list[str] = []
        self._offset = 0
        self._file_id: tuple[int, int] | None = None
        self._lines = 0
        self._rest = b""

    @property
    def log(self) -> RunLog:
        """What has been read so far."""
        return RunLog(
            self._path, self._parameters or (), tuple(self._windows), tuple(self._overheads), tuple(self._problems)
        )

    def poll(self) -> int:
        """Take in what is new, and say how many windows that were.

        Raises:
            InvalidRunLogError: there is no such file, or it is no run log.
        """
        # First read: a file that begins again leaves nothing of the old one's rest.
        found = self._unread()
        self._rest += found
        if self._parameters is None and not HEADER.match(self._rest):
            raise InvalidRunLogError(not_a_log(self._path, self._rest))
        *lines, self._rest = self._rest.split(b"\n")
        return sum(self._take(line) for line in lines)

    def finish(self) -> RunLog:
        """The log, with a last line that has no end taken in if it is whole, and said to be torn if not.

        Raises:
            InvalidRunLogError: not even the first line is whole.
        """
        if self._parameters is None and not self._rest.rstrip().endswith(b"}"):
            raise InvalidRunLogError(not_a_log(self._path, self._rest))
        if self._rest.strip():
            before = len(self._problems)
            self._take(self._rest)
            if len(self._problems) > before:
                self._problems[before:] = [f"line {self._lines} is torn: the run ended, or is still writing it"]
            self._rest = b""
        return self.log

    def _unread(self) -> bytes:
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                file_id = (status.st_dev, status.st_ino)
                if self._file_id not in (None, file_id) or status.st_size < self._offset:
                    self._start_over()
                self._file_id = file_id
                if self._offset:
                    file.seek(self._offset)
                found = file.read()
        except IsADirectoryError as error:
            raise InvalidRunLogError(f"{self._path} is a directory; name the run log's file inside it.") from error
        except FileNotFoundError as error:
            raise InvalidRunLogError(f"There is no file {self._path}.") from error
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            raise InvalidRunLogError(f"{self._path} cannot be read: {error}.") from error
        self._offset += len(found)
        return found

    def _take(self, line: bytes) -> bool:
        """Take in one line; whether it held a window."""
        self._lines += 1
        if self._parameters is None:
            self._declare(line)
            return False
        if not line.strip():
            return False
        try:
            if HEADER.match(line):
                self._columns = None  # until a table is read, nobody knows whose figures come next
                self._declare(line)
                return False
            if self._columns is None:
                raise ValueError("the parameter table before it could not be read")
            window, overhead = decode.window(decode.record(line), self._columns)
        except ValueError as error:
            self._problems.append(f"line {self._lines} was left out: {error}")
            return False
        self._add(window, overhead)
        return True

    def _declare(self, line: bytes) -> None:
        self._parameters = read_header(self._path, line)
        self._columns = [info.name for info in self._parameters]

    def _add(self, window: Window, overhead: float | None) -> None:
        # A run that was resumed from an earlier checkpoint measures some windows again: the later ones hold.
        kept = len(self._windows)
        while kept and self._windows[kept - 1].index >= window.index:
            kept -= 1
        if kept < len(self._windows):
            again = f"{self._windows[kept].index} to {self._windows[-1].index}"
            self._problems.append(
                f"windows {again} were left out: in line {self._lines} the run goes back to window {window.index}"
            )
        self._windows[kept:] = [window]
        self._overheads[kept:] = [overhead]
        if self._keep is not None:
            del self._windows[: -self._keep], self._overheads[: -self._keep]
