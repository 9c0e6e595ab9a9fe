"""Single keys from a terminal, as they are pressed."""

from __future__ import annotations

import os
import re
import select
import sys
from types import TracebackType
from typing import Any

from gradscope.errors import InvalidArgumentError

_KEY = re.compile(r"\x1b(?:\[|O)[0-9;]*[A-Za-z~]|.", re.DOTALL)
_NAMES = {
    "A": "up", "B": "down", "H": "home", "F": "end", "1~": "home", "4~": "end", "5~": "page up", "6~": "page down",
    "7~": "home", "8~": "end",
}  # fmt: skip


def keys_in(text: str) -> list[str]:
    """The keys that a terminal sent: letters as they are, others by name; what has no name is left out."""
    found = []
    for key in _KEY.findall(text):
        if key.startswith("\x1b"):
            found.append(_NAMES.get(key[2:], ""))
        else:
            found.append(key)
    return [key for key in found if key]


class Keyboard:
    """Standard input without line buffering and echo, for as long as the context lasts.

    Raises:
        InvalidArgumentError: standard input or output is no terminal, or the system has none that can do this.
    """

    def __init__(self) -> None:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise InvalidArgumentError("top needs a terminal; use gradscope report FILE --follow where there is none.")
        self._input = sys.stdin.fileno()
        self._before: list[Any] = []

    def __enter__(self) -> Keyboard:
        try:
            import termios
            import tty
        except ImportError as error:
            raise InvalidArgumentError(
                "top needs a POSIX terminal, which this system has not; use gradscope report FILE --follow."
            ) from error
        self._before = termios.tcgetattr(self._input)
        tty.setcbreak(self._input)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        import termios

        termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)

    def keys(self, seconds: float) -> list[str]:
        """The keys pressed within that time; it returns with the first ones. ``"q"`` where the terminal went away."""
        ready, _, _ = select.select([self._input], [], [], seconds)
        if not ready:
            return []
        read = os.read(self._input, 1024)
        return keys_in(read.decode("utf-8", "replace")) if read else ["q"]
