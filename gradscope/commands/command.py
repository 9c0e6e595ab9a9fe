"""What a command is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand of the command line.

    Attributes:
        summary: what it does, in one line.
        add_arguments: adds its arguments to its parser.
        run: does it, and returns the exit status: 0 all is well, 1 a problem was found. What keeps it from running is
            raised as a ``GradscopeError`` or ``OSError`` and makes the status 2.
    """

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
