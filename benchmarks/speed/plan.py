"""The whole table as commands, each short enough to run between other things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.speed.growth import AXES
from benchmarks.speed.problem import Builder
from benchmarks.speed.tools import TOOLS

#: Interleaved runs: of ours, so that two guard windows are among them; of the others; of those that take very long.
OURS, OTHERS, SLOW = 32, 15, 5
#: Ratio from which a tool counts as taking very long.
LONG = 10.0
#: Seconds of start-up, building and checking that come with each command.
OVERHEAD = 12.0


def rounds_of(tool: str) -> int:
    """How many runs a tool gets."""
    found = TOOLS[tool]
    return OURS if found.ours or found.work == "plain" else SLOW if found.cost >= LONG else OTHERS


def groups(builder: Builder, tools: Sequence[str], limit: float) -> Iterator[tuple[int, list[str]]]:
    """Tools that fit into one process: the rounds, and the names."""
    for rounds in (OURS, OTHERS, SLOW):
        group: list[str] = []
        spent = 1.0
        for name in (name for name in tools if rounds_of(name) == rounds):
            cost = TOOLS[name].cost
            if group and OVERHEAD + (rounds + 5) * builder.seconds * (spent + cost) > limit:
                yield rounds, group
                group, spent = [], 1.0
            group.append(name)
            spent += cost
        if group:
            yield rounds, group


def plan(
    models: dict[str, Builder], tools: Sequence[str], *, limit: float, common: Sequence[str], memory: bool, growth: bool
) -> Iterator[list[str]]:
    """Arguments of the program, one list per command.

    Args:
        models: what to measure.
        tools: with what.
        limit: seconds that a command may take, roughly.
        common: arguments that each command gets.
        memory: with peak memory.
        growth: with the curves.
    """
    for model, builder in models.items():
        for rounds, group in groups(builder, tools, limit):
            arguments = ["--model", model, "--tools", ",".join(group), "--rounds", str(rounds), "--limit", f"{limit:g}"]
            yield ["time", *arguments, *common]
    for model in models if memory else ():
        for start in range(0, len(tools), 10):
            yield ["memory", "--model", model, "--tools", ",".join(tools[start : start + 10]), *common]
    for axis in AXES if growth else ():
        yield ["growth", "--axis", axis, "--limit", f"{limit:g}", *common]
