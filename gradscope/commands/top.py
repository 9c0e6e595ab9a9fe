"""``gradscope top FILE``: the report of a run log as a live screen, while the training goes on in another terminal."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gradscope.commands.arguments import add_run_log
from gradscope.commands.command import Command

if TYPE_CHECKING:
    from rich.console import Console, Group

    from gradscope.commands.view import Screen, View
    from gradscope.report import Report
    from gradscope.runlog import RunLogFollower

_BETWEEN_LOOKS = 0.25  # seconds


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from gradscope.commands.keyboard import Keyboard
    from gradscope.commands.report import summary
    from gradscope.commands.view import View, pressed
    from gradscope.runlog import RunLogFollower

    console = Console()
    keyboard = Keyboard()
    follower = RunLogFollower(options.file, keep=options.last)
    _, notice = _looked(follower, options.file)
    report, view = summary(follower.log, options.last), View(depth=options.depth)
    screen = _screen(console, report, view, notice)
    try:
        with keyboard, Live(_picture(screen), console=console, screen=True, auto_refresh=False) as live:
            while not view.over:
                for key in keyboard.keys(_BETWEEN_LOOKS):
                    view = pressed(view, key, screen)
                changed, notice = _looked(follower, options.file)
                if changed:
                    report = summary(follower.log, options.last)
                if (after := _screen(console, report, view, notice)) != screen:
                    screen = after
                    live.update(_picture(screen), refresh=True)
    except KeyboardInterrupt:
        pass  # the other way to leave
    return 0


def _looked(follower: RunLogFollower, path: str) -> tuple[bool, str]:
    """Whether there is something new to show, and what is waited for.

    Raises:
        InvalidRunLogError: there is a file, and it will never be a run log.
    """
    from gradscope.errors import InvalidRunLogError

    began, problems = follower.log.parameters, follower.log.problems
    try:
        new = follower.poll()
    except InvalidRunLogError:
        if not _may_come(path):
            raise
        return False, f"waiting for {path}"
    log = follower.log
    return bool(new) or log.parameters is not began or log.problems != problems, ""


def _may_come(path: str) -> bool:
    """Whether a run may still make this file: it is not there, or its first line has only begun."""
    from gradscope.runlog.schema import MARK

    try:
        with open(path, "rb") as file:
            start = file.read(len(MARK))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return f'{{"{MARK}'.encode().startswith(start)


def _screen(console: Console, report: Report, view: View, notice: str) -> Screen:
    from gradscope.commands.view import drawn
    from gradscope.reporter.glyphs import glyphs_for

    width, height = console.size
    return drawn(report, view, width, height, glyphs_for(console.encoding), notice)


def _picture(screen: Screen) -> Group:
    from rich.console import Group

    from gradscope.reporter.table import styled

    return Group(*map(styled, screen.lines))


TOP = Command(
    "watch a run log grow, full screen: q quits, s sorts, f folds and opens, arrows scroll", add_run_log, _run
)
