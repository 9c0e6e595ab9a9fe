"""The command line: ``gradscope COMMAND``. Each command is a file of ``gradscope.commands``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from gradscope.commands import COMMANDS, Command
from gradscope.errors import GradscopeError

#: Exit statuses: everything is well; a problem was found; the command could not be run.
FINE, PROBLEM, FAILED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` (by default the process's own) name, and return its exit status.

    Errors that the user can do something about are one message on standard error, without a traceback.
    """
    chosen = parser().parse_args(arguments)
    command: Command = chosen.command
    try:
        status = command.run(chosen)
        sys.stdout.flush()  # here, where a reader who left can still be told from a failure
        return status
    except GradscopeError as error:
        return _failed(str(error))
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. It imports no command's work: neither torch nor rich."""
    made = argparse.ArgumentParser(
        prog="gradscope", description="What is inside the gradient that an optimizer is about to apply."
    )
    made.add_argument("--version", action=_Version, help="print the version and exit")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.summary, description=command.summary)
        command.add_arguments(own)
        own.set_defaults(command=command)
    return made


class _Version(argparse.Action):
    """Prints the version, which is looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from gradscope import __version__

        print(f"gradscope {__version__}")
        parser.exit()


def _failed(message: str) -> int:
    from gradscope.reporter.text import visible

    print(f"gradscope: {visible(message)}", file=sys.stderr)
    return FAILED


def _reader_left() -> int:
    # Whoever read the output has enough; Python's own flush at exit would complain about it once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FINE
