"""The whole table as commands, each short enough to run between other things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.speed.growth import AXES
from benchmarks.speed.problem import Builder
from benchmarks.speed.tools import TOOLS

#: Seconds of start-up, building and checking that come with each command.
OVERHEAD = 12.0


#: Tools in one process: each has a model of its own, and too many push each other out of the caches.
MODELS_AT_ONCE = 6
#: Seconds that the plain steps of a measurement should last together: fast models get more rounds.
LASTING = 2.0
#: How many times more, at most.
MORE = 16


def repeated(builder: Builder) -> int:
    """How many times over the rounds are run; whole multiples keep the share of guard windows."""
    return min(max(int(LASTING / (16 * builder.seconds)), 1), MORE)


def groups(builder: Builder, tools: Sequence[str], limit: float) -> Iterator[tuple[int, list[str]]]:
    """Tools that fit into one process: the rounds, and the names."""
    times = repeated(builder)
    for each in dict.fromkeys(TOOLS[name].rounds for name in tools):
        rounds = each * times
        group: list[str] = []
        spent = 1.0
        for name in (name for name in tools if TOOLS[name].rounds == each):
            cost = TOOLS[name].cost
            if group and (
                len(group) == MODELS_AT_ONCE or OVERHEAD + (rounds + 5) * builder.seconds * (spent + cost) > limit
            ):
                yield rounds, group
                group, spent = [], 1.0
            group.append(name)
            spent += cost
        if group:
            yield rounds, group


def plan(
    models: dict[str, Builder],
    tools: Sequence[str],
    *,
    limit: float,
    common: Sequence[str],
    memory: bool,
    growth: bool,
    rounds: int | None = None,
) -> Iterator[list[str]]:
    """Arguments of the program, one list per command.

    Args:
        models: what to measure.
        tools: with what.
        limit: seconds that a command may take, roughly.
        common: arguments that each command gets.
        memory: with peak memory.
        growth: with the curves.
        rounds: interleaved runs of every tool, instead of what each is worth.
    """
    for model, builder in models.items():
        for worth, group in groups(builder, tools, limit) if rounds is None else [(rounds, list(tools))]:
            arguments = ["--model", model, "--tools", ",".join(group), "--rounds", str(worth), "--limit", f"{limit:g}"]
            yield ["time", *arguments, *common]
    for model in models if memory else ():
        for start in range(0, len(tools), 10):
            yield ["memory", "--model", model, "--tools", ",".join(tools[start : start + 10]), *common]
    for axis in AXES if growth else ():
        few = [] if rounds is None else ["--rounds", str(rounds)]
        yield ["growth", "--axis", axis, "--limit", f"{limit:g}", *few, *common]
