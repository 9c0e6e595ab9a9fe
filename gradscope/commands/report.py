"""``gradscope report FILE``: print the report of a run log again, once or as it grows."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gradscope.commands.arguments import add_run_log, positive
from gradscope.commands.command import Command

if TYPE_CHECKING:
    from gradscope.report import Report
    from gradscope.reporter.table import ReportTable
    from gradscope.runlog import RunLog, RunLogFollower

_BETWEEN_LOOKS = 0.5  # seconds


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_log(parser)
    parser.add_argument("--width", type=positive, metavar="W", help="columns to use at most (default: the terminal's)")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the report as JSON")
    shown.add_argument("--svg", type=Path, metavar="OUT", help="write a picture of the report to OUT")
    shown.add_argument(
        "--follow", action="store_true", help="go on as the file grows, until Ctrl-C; where piped, a line per window"
    )


def _run(options: argparse.Namespace) -> int:
    if options.follow:
        return _follow(options)
    from gradscope import reporter
    from gradscope.runlog import read_run_log

    log = read_run_log(options.file)
    report = summary(log, options.last)
    if options.json:
        print(reporter.to_json(report, indent=2))
    elif options.svg:
        options.svg.write_text(reporter.svg(report, options.width, options.depth), encoding="utf-8")
    else:
        _print(report, options)
    return 0


def summary(log: RunLog, last: int) -> Report:
    """The report over the last windows of a run log; what could not be read of it is among the warnings."""
    from gradscope.summary import summarise

    return summarise(log.parameters, log.windows[-last:], overhead=log.overhead, warnings=log.problems)


def _print(report: Report, options: argparse.Namespace) -> None:
    from rich.console import Console

    from gradscope.reporter import table

    Console(width=options.width).print(table(report, options.depth))


def _follow(options: argparse.Namespace) -> int:
    from gradscope.runlog import RunLogFollower

    follower = RunLogFollower(options.file, keep=options.last)
    try:
        follower.poll()
        # Not the console's own opinion: FORCE_COLOR on a pipe asks for colours, and not for cursor movements.
        if sys.stdout.isatty():
            _live(follower, options)
        else:
            _lines(follower, options)
    except KeyboardInterrupt:
        pass  # how following ends
    return 0


def _live(follower: RunLogFollower, options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.live import Live

    from gradscope.reporter import table

    def drawn() -> ReportTable:
        return table(summary(follower.log, options.last), options.depth, options.width)

    with Live(drawn(), console=Console(), auto_refresh=False) as live:
        while True:
            time.sleep(_BETWEEN_LOOKS)
            if follower.poll():
                live.update(drawn(), refresh=True)


def _lines(follower: RunLogFollower, options: argparse.Namespace) -> None:
    from gradscope.reporter import log_line

    new = True
    while True:
        if new:
            print(log_line(summary(follower.log, options.last), options.depth), flush=True)
        time.sleep(_BETWEEN_LOOKS)
        new = follower.poll() > 0


REPORT = Command("print the report of a run log, once or as it grows", _add_arguments, _run)
