"""The commands: an open set, one file and one line in ``COMMANDS`` each.

A command's file is imported whenever the command line starts, also for ``--help``: it imports torch, rich and whatever
imports them inside its functions, and not at its top.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gradscope.commands.check import CHECK
from gradscope.commands.command import Command
from gradscope.commands.demo import DEMO
from gradscope.commands.doctor import DOCTOR
from gradscope.commands.report import REPORT
from gradscope.commands.run import RUN
from gradscope.commands.top import TOP

COMMANDS: Mapping[str, Command] = MappingProxyType(
    {
        "demo": DEMO,
        "run": RUN,
        "report": REPORT,
        "top": TOP,
        "check": CHECK,
        "doctor": DOCTOR,
    }
)

__all__ = ["COMMANDS", "Command"]
