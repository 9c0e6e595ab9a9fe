"""How a script can end: by itself, by an exception, by a signal, or in a process that it forked."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_OUR_FILES = (str(Path(__file__).parent), str(Path(__file__).parent.parent / "commands" / "run.py"))


def show(error: BaseException) -> None:
    """Print an uncaught exception as Python would have: with the script's own hook, and without frames of ours."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = _without_ours(link.__traceback__)
            chain += [link.__cause__, link.__context__]
    sys.excepthook(type(error), error, error.__traceback__)


def _without_ours(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and _is_ours(traceback):
        traceback = traceback.tb_next
    link = traceback
    while link is not None:
        while link.tb_next is not None and _is_ours(link.tb_next):
            link.tb_next = link.tb_next.tb_next
        link = link.tb_next
    return traceback


def _is_ours(link: TracebackType) -> bool:
    return link.tb_frame.f_code.co_filename.startswith(_OUR_FILES)


class Signals:
    """SIGTERM, which otherwise ends a script without a word; and how an interrupted process ends.

    Args:
        last_words: called before the process ends by SIGTERM.
    """

    def __init__(self, last_words: Callable[[], None]) -> None:
        self._last_words = last_words
        self._interrupted = False
        self._process = os.getpid()

    def install(self) -> None:
        """Take SIGTERM, where nobody has; a script that looks finds it untaken, and takes it."""
        # Registered first, and so called last: after all that the script has registered.
        atexit.register(self._end_interrupted)
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        signal.signal(signal.SIGTERM, self._terminate)
        asked = signal.getsignal

        def getsignal(number: int, /) -> Any:
            found = asked(number)
            # Lightning and others handle SIGTERM only where nobody else does.
            return signal.SIG_DFL if found == self._terminate else found

        signal.getsignal = getsignal  # type: ignore[assignment]
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._in_child)

    def interrupted(self) -> None:
        """The script was interrupted and did not catch it: the process is to end by that signal, as Python's do."""
        self._interrupted = True

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self._last_words()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    def _in_child(self) -> None:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _end_interrupted(self) -> None:
        if self._interrupted and os.getpid() == self._process:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
