"""The command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.speed.clock import NoDeviceError, clock_for
from benchmarks.speed.measure import measure
from benchmarks.speed.models import LARGE, MODELS
from benchmarks.speed.problem import Builder
from benchmarks.speed.results import append, default_path
from benchmarks.speed.tools import TOOLS

ALL = {**MODELS, **LARGE}


def names(text: str, known: Sequence[str]) -> list[str]:
    """Names of a comma-separated list.

    Raises:
        ArgumentTypeError: one is unknown.
    """
    given = list(known) if text == "all" else [each for each in text.split(",") if each]
    unknown = [each for each in given if each not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}. There are: {', '.join(known)}.")
    return given


def parser() -> argparse.ArgumentParser:
    """What the program understands."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    time = commands.add_parser("time", help="check and time tools on one model, interleaved in this process")
    time.add_argument("--rounds", type=int, default=32)
    time.add_argument("--limit", type=float, default=90.0, help="seconds after which no further round begins")
    for command in (time,):
        command.add_argument("--model", choices=ALL, required=True)
        command.add_argument("--tools", type=lambda text: names(text, list(TOOLS)), default=list(TOOLS))
        command.add_argument("--device", type=torch.device, default=torch.device("cpu"))
        command.add_argument("--threads", type=int, default=2)
        command.add_argument("--tiny", action="store_true", help="shapes of a smoke test")
        command.add_argument("--results", type=Path)
    return top


def run_time(options: argparse.Namespace) -> None:
    """Time, print, and keep."""
    builder: Builder = ALL[options.model]
    lines = measure(
        options.model, builder, options.tools, options.device,
        rounds=options.rounds, limit=options.limit, tiny=options.tiny,
    )  # fmt: skip
    for line in lines:
        found = line.get("ratios")
        text = f"{found['median']:6.2f} [{found['low']:.2f}, {found['high']:.2f}] mean {found['mean']:.2f} of {found['runs']}" if found else ""
        print(f"{line['model']:10} {line['tool']:20} {line['status']:8} {line['measured']:3}/{line['parameters']:<3} {line['error']:.1e} {text} {line['reason']}")
    append(options.results or default_path(options.device.type), lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what it needs and does not find ends it with one line."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        clock_for(options.device)
        run_time(options)
    except NoDeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
