"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.speed.growth import AXES, TOOLS_DRAWN
from benchmarks.speed.models import LARGE, MODELS
from benchmarks.speed.tools import TOOLS

ALL = {**MODELS, **LARGE}


def names(text: str, known: Sequence[str]) -> list[str]:
    """Names of a comma-separated list, or all.

    Raises:
        ArgumentTypeError: one is unknown.
    """
    given = list(known) if text == "all" else [each for each in text.split(",") if each]
    unknown = [each for each in given if each not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}. There are: {', '.join(known)}.")
    return given


def some_tools(text: str) -> list[str]:
    """Tools by their keys."""
    return names(text, list(TOOLS))


def some_models(text: str) -> list[str]:
    """Models by their keys."""
    return names(text, list(ALL))


def parser() -> argparse.ArgumentParser:
    """What the program understands."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="What a step costs with each tool.")
    commands = top.add_subparsers(dest="command", required=True)
    add = {name: commands.add_parser(name, help=text) for name, text in COMMANDS.items()}
    for name in ("time", "memory", "peak"):
        add[name].add_argument("--model", dest="models", type=some_models, required=True, help="keys, or all")
        add[name].add_argument("--tools", type=some_tools, default=list(TOOLS), help="keys, comma-separated, or all")
    for name in ("plan", "all"):
        add[name].add_argument("--models", type=some_models, default=list(MODELS), help="keys, comma-separated, or all")
        add[name].add_argument("--tools", type=some_tools, default=list(TOOLS), help="keys, comma-separated, or all")
        add[name].add_argument(
            "--rounds", type=int, help="interleaved runs of every tool, instead of what each is worth"
        )
        add[name].add_argument("--no-memory", action="store_true")
        add[name].add_argument("--no-growth", action="store_true")
    add["growth"].add_argument("--axis", choices=list(AXES), required=True)
    add["growth"].add_argument("--tools", type=some_tools, default=list(TOOLS_DRAWN))
    for name in ("time", "growth"):
        add[name].add_argument("--rounds", type=int, default=16 if name == "time" else 9, help="interleaved runs")
    for name in ("time", "growth", "plan", "all"):
        add[name].add_argument("--limit", type=float, default=90.0, help="seconds that one command may take, roughly")
    for name in set(add) - {"write", "list"}:
        _where(add[name])
    for name in set(add) - {"peak", "list"}:
        add[name].add_argument("--results", type=Path, help="file of JSON lines; by default the repository's own")
    add["write"].add_argument("--document", type=Path, default=Path("docs/speed.md"))
    add["write"].add_argument("--device", type=torch.device, default=torch.device("cpu"))
    return top


COMMANDS = {
    "list": "models, tools and axes",
    "time": "check and time tools on one model, interleaved in this process",
    "memory": "peak memory of tools on one model, a process each",
    "peak": "peak memory of one tool, in this process",
    "growth": "ratios over one size",
    "plan": "the commands that make up the whole table, one a line",
    "all": "run them",
    "write": "write the document's tables and pictures from the results",
}


def _where(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    command.add_argument("--threads", type=int, default=2)
    command.add_argument("--tiny", action="store_true", help="shapes of a smoke test: shows that it runs, no more")
