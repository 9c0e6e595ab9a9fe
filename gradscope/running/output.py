"""What is said on standard error while a script runs, and at its end."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TextIO

from gradscope.report import Report
from gradscope.reporter import log_line, render
from gradscope.reporter.glyphs import ASCII, Glyphs, glyphs_for
from gradscope.running.watched import Watched
from gradscope.scope import Scope

#: Reports that are printed in full at the end; of further models, one line each.
_IN_FULL = 4
_USUAL_WIDTH = 100


class Output:
    """Lines and reports, for people and for the logs of clusters: plain ASCII where they go into a file.

    Args:
        stream: where to; what the script makes of ``sys.stderr`` later does not matter.
        lines: a line each so many measured windows; 0 is none.
        depth: how far folded layers are opened; None is as far as it takes to see more than one.
        log: path of the run log, or None.
        quiet: whether to say nothing but what went wrong.
    """

    def __init__(self, stream: TextIO, lines: int, depth: int | None, log: str | None, quiet: bool) -> None:
        self._stream = stream
        self._lines = lines
        self._depth = depth
        self._log = log
        self._quiet = quiet
        self._logs: list[Path] = []
        self._shown: dict[int, int] = {}
        terminal = stream.isatty()
        self._glyphs: Glyphs = glyphs_for(stream.encoding) if terminal else ASCII
        self._width = shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns if terminal else _USUAL_WIDTH

    def begin(self, watched: Watched, scope: Scope) -> None:
        """A model is watched from now on: say so, and open its log."""
        where = ""
        if self._log is not None:
            path = Path(self._log) if not self._logs else self._sibling(watched.word)
            self._logs.append(path)
            try:
                scope.log_to(path)
                where = f", logged to {path}"
            except (ValueError, OSError) as error:
                self.say(f"{watched.label} is not logged: {error}", important=True)
        self.say(f"watching {watched.summary}{where}")

    def _sibling(self, word: str) -> Path:
        """``run.netG.jsonl`` beside ``run.jsonl``: a log holds one model."""
        path = Path(self._log or "")
        name = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in word)
        sibling = path.with_name(f"{path.stem}.{name}{path.suffix}")
        number = 2
        while sibling in self._logs:
            sibling = path.with_name(f"{path.stem}.{name}{number}{path.suffix}")
            number += 1
        return sibling

    def step(self, watched: Watched, among: int) -> None:
        """A window of one of so many models may have ended."""
        measured = watched.measured
        if self._quiet or not self._lines or measured % self._lines or self._shown.get(id(watched), 0) == measured:
            return
        self._shown[id(watched)] = measured
        line = self._line(watched)
        self._write(line if among == 1 else line.replace("gradscope ", f"gradscope model={watched.word} ", 1))

    def report(self, watched: list[Watched]) -> None:
        """The final report of each model that has one."""
        if self._quiet:
            return
        measured = [model for model in watched if model.measured]
        for model in measured[:-_IN_FULL]:
            self._write(f"gradscope: {model.summary}\n{self._line(model)}")
        for model in measured[-_IN_FULL:]:
            report = model.report()
            drawn = render(report, self._width, self._depth_of(report), glyphs=self._glyphs)
            self._write(f"\ngradscope: {self._glyphs.text(model.summary)}\n{drawn}")

    def _line(self, watched: Watched) -> str:
        report = watched.report()
        return log_line(report, self._depth_of(report))

    def _depth_of(self, report: Report) -> int:
        if self._depth is not None:
            return self._depth
        # Many models keep all their layers in one attribute: a single row would say what the total says.
        return next((depth for depth, rows in enumerate(report.groups) if len(rows) > 1), 0)

    def say(self, text: str, *, important: bool = False) -> None:
        """One sentence; ``important`` ones also where quiet was asked for."""
        if important or not self._quiet:
            self._write(f"gradscope: {self._glyphs.text(text)}")

    def _write(self, text: str) -> None:
        try:
            # One write, so that lines of other processes do not come in between.
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._quiet = True  # nobody reads it any more; the script goes on


def is_first_rank() -> bool:
    """Whether this process is the one of several ranks that speaks."""
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        if name in os.environ:
            return os.environ[name] in ("", "0")
    return True


def standard_error() -> TextIO:
    """A stream of our own onto standard error, which the script cannot close or replace."""
    try:
        number = os.dup(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return sys.stderr
    return open(number, "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1, closefd=True)
