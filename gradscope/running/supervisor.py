"""A script's run, looked into: from before its first line to after its last."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradscope.errors import InvalidArgumentError
from gradscope.running.endings import Signals, show
from gradscope.running.imports import when_imported
from gradscope.running.program import Program

if TYPE_CHECKING:
    from gradscope.running.attaching import Attaching
    from gradscope.running.output import Output


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for.

    Attributes:
        every: measure each so many windows.
        lines: print a line each so many measured windows.
        depth: how far folded layers are opened; None is as far as it takes to see more than one.
        log: path of the run log, or None.
        quiet: print nothing but what went wrong.
    """

    every: int = 1
    lines: int = 100
    depth: int | None = None
    log: str | None = None
    quiet: bool = False


class Supervisor:
    """Runs a program, watches the models that it trains, and reports at its end, however it ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process = os.getpid()
        self._attaching: Attaching | None = None
        self._output: Output | None = None
        self._over = False

    def run(self, program: Program) -> int:
        """The exit status that the program itself would have had.

        Raises:
            SystemExit: the program raised it.
            InvalidArgumentError: there is no such program.
        """
        signals = Signals(self.finish)
        signals.install()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._in_child)
        when_imported("torch", self._begin)
        found = False
        try:
            start = program.prepared()
            found = True
            start()
        except SystemExit:
            self.finish()
            raise
        except BaseException as error:  # whatever the script lets out ends it, and is shown as its own
            if not found and isinstance(error, InvalidArgumentError):
                self._over = True
                raise
            self.finish()
            show(error)
            if isinstance(error, KeyboardInterrupt):
                signals.interrupted()
            return 1
        self.finish()
        return 0

    def _begin(self) -> None:
        """Look out for models: torch has been imported."""
        try:
            from gradscope.capture.hook import UNASKED
            from gradscope.running.attaching import Attaching, is_rank
            from gradscope.running.output import Output, is_first_rank, standard_error

            settings = self._settings
            speaks = is_first_rank()
            self._output = output = Output(
                standard_error(), settings.lines, settings.depth, settings.log if speaks else None,
                settings.quiet or not speaks,
            )  # fmt: skip
            self._attaching = attaching = Attaching(
                settings.every, output.begin, lambda watched: output.step(watched, len(attaching.watched)), is_rank()
            )
            attaching.begin()
            UNASKED.append(attaching.give_way)
        except Exception as error:  # the script runs on without us, whatever is broken here
            print(f"gradscope: cannot watch anything: {type(error).__name__}: {error}", file=sys.stderr)

    def finish(self) -> None:
        """Report what was found, once, and take everything off."""
        if self._over or os.getpid() != self._process:
            return
        self._over = True
        try:
            self._report()
        except Exception as error:  # the script's own ending is what counts
            print(f"gradscope: no report: {type(error).__name__}: {error}", file=sys.stderr)

    def _report(self) -> None:
        if self._attaching is None or self._output is None:
            if "torch" not in sys.modules and not self._settings.quiet:
                print("gradscope: nothing to report: the program did not import torch.", file=sys.stderr)
            return
        from gradscope.running.reasons import reasons

        self._attaching.end()
        self._output.report(self._attaching.watched)
        for reason in reasons(self._attaching):
            self._output.say(reason, important=True)

    def _in_child(self) -> None:
        """A forked process is not looked into: its parent reports."""
        self._over = True
        if self._attaching is not None:
            self._attaching.forget()
