"""``gradscope run script.py``: any training script, unmodified, with a report."""

from __future__ import annotations

import argparse
import os

from gradscope.commands.arguments import not_negative, positive
from gradscope.commands.command import Command
from gradscope.errors import InvalidArgumentError

#: How run logs begin. Spelled out, since gradscope.runlog imports torch, which is the script's to import.
_MARK = b'{"gradscope_run_log"'


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "gradscope run [options] script.py [arguments]\n       gradscope run [options] -m package.module [arguments]"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "Figures go to standard error; output, numbers and exit status stay the program's own.\n"
        "With several ranks: torchrun ... -m gradscope run script.py"
    )
    parser.add_argument(
        "--every", type=positive, default=1, metavar="N", help="measure only each N-th window (default: 1)"
    )
    parser.add_argument(
        "--lines", type=not_negative, default=100, metavar="N",
        help="print a line each N measured windows; 0 for none (default: 100)",
    )  # fmt: skip
    parser.add_argument(
        "--log",
        "--run-log",
        metavar="FILE",
        help="write a run log, for `gradscope top FILE` and `gradscope report FILE`; torchrun takes --log for one of its own "
        "options, and lets --run-log pass",
    )
    parser.add_argument(
        "--depth",
        type=not_negative,
        metavar="D",
        help="open folded layers D levels deep (default: until there are several)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but what went wrong")
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE", help="run a module, as python -m does"
    )
    parser.add_argument(
        "program", nargs=argparse.REMAINDER, metavar="script.py", help="the script, and its own arguments"
    )


def _run(options: argparse.Namespace) -> int:
    # Here and not above: the command line must start without any of this.
    from gradscope.running.program import Program
    from gradscope.running.supervisor import Settings, Supervisor

    if options.log is not None:
        _check_log(options.log)
    if options.module is not None:
        program = Program.named(options.module, is_module=True)
    else:
        program = Program.named(options.program, is_module=False)
    return Supervisor(Settings(options.every, options.lines, options.depth, options.log, options.quiet)).run(program)


def _check_log(path: str) -> None:
    """Refuse now what would fail when the first model is found."""
    if os.path.isdir(path):
        raise InvalidArgumentError(f"run: --log {path} is a directory; name a file in it.")
    if os.path.exists(path):
        with open(path, "rb") as file:
            start = file.read(len(_MARK))
        if start and start != _MARK:
            raise InvalidArgumentError(f"run: --log {path} exists and is no run log of gradscope; name another file.")


RUN = Command("run a training script as it is, and report what is inside its gradients", _add_arguments, _run)
