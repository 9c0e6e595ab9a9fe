"""What the program's commands do."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.speed.cli import ALL, parser
from benchmarks.speed.clock import NoDeviceError, clock_for
from benchmarks.speed.document import write
from benchmarks.speed.growth import AXES, grow
from benchmarks.speed.measure import measure
from benchmarks.speed.memory import guarded, in_a_process, peaks
from benchmarks.speed.plan import plan
from benchmarks.speed.results import append, default_path
from benchmarks.speed.tools import TOOLS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a device that is not here ends it with one line."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(getattr(options, "threads", 1))
    try:
        if hasattr(options, "threads"):
            clock_for(options.device)
        return RUN[options.command](options)
    except NoDeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _keep(options: Namespace, lines: Sequence[dict[str, Any]]) -> int:
    """Print lines of results, and add them to the file."""
    for line in lines:
        print(_told(line), flush=True)
    append(options.results or default_path(options.device.type), lines)
    return 0


def _told(line: dict[str, Any]) -> str:
    head = f"{line['model']:10} {line.get('size', ''):>5} {line['tool']:20}"
    if "first" in line:
        return f"{head} {line['first']:8.1f} MB at first, {line['later']:8.1f} MB later"
    found = line.get("ratios")
    if found is None:
        return f"{head} {line.get('status', '')} {line.get('reason', '')}"
    measured = f"{line['status']} {line['measured']}/{line['parameters']}, error {line['error']:.0e}"
    return (
        f"{head} {found['median']:7.2f} [{found['low']:.2f}, {found['high']:.2f}], mean {found['mean']:.2f}, "
        f"{found['runs']} runs; {measured}"
    )


def _time(options: Namespace) -> int:
    wrong = 0
    for model in options.models:
        lines = measure(
            model, ALL[model], options.tools, options.device,
            rounds=options.rounds, limit=options.limit, tiny=options.tiny,
        )  # fmt: skip
        _keep(options, lines)
        if any(TOOLS[line["tool"]].ours and line["status"] == "wrong" for line in lines):
            print(f"error: gradscope's own figures are wrong on {model}", file=sys.stderr)
            wrong = 1
    return wrong


def _memory(options: Namespace) -> int:
    for model in options.models:
        for tool in options.tools:
            _keep(options, [in_a_process(model, tool, _where(options))])
    return 0


def _peak(options: Namespace) -> int:
    (model,), (tool,) = options.models, options.tools
    found = guarded(lambda: peaks(ALL[model], tool, options.device, tiny=options.tiny))
    print(json.dumps({**found, "tiny": options.tiny}))
    return 0


def _growth(options: Namespace) -> int:
    return _keep(
        options,
        grow(
            options.axis, options.tools, options.device,
            rounds=options.rounds, limit=options.limit, tiny=options.tiny,
        ),
    )  # fmt: skip


def _where(options: Namespace) -> list[str]:
    return ["--device", str(options.device), "--threads", str(options.threads), *(["--tiny"] if options.tiny else [])]


def _commands(options: Namespace) -> Iterator[list[str]]:
    common = [*_where(options), *(["--results", str(options.results)] if options.results else [])]
    models = {name: ALL[name] for name in options.models}
    found = plan(
        models, options.tools, limit=options.limit, common=common,
        memory=not options.no_memory, growth=not options.no_growth, rounds=options.rounds,
    )  # fmt: skip
    for arguments in found:
        yield [sys.executable, "-W", "ignore", "-m", "benchmarks.speed", *arguments]


def _plan(options: Namespace) -> int:
    for command in _commands(options):
        print(shlex.join(command))
    return 0


def _all(options: Namespace) -> int:
    """Each in a process of its own: a tool that breaks its process breaks nothing else."""
    failed = 0
    for command in _commands(options):
        print("$ " + shlex.join(command[4:]), flush=True)
        failed |= subprocess.run(command).returncode
    return 1 if failed else 0


def _write(options: Namespace) -> int:
    source = options.results or default_path(options.device.type)
    for path in write(source, ALL, options.document):
        print(f"wrote {path}")
    return 0


def _list(options: Namespace) -> int:
    for name, builder in ALL.items():
        print(f"model {name:20} {builder.title}")
    for name, tool in TOOLS.items():
        print(f"tool  {name:20} {tool.work}: {tool.title}")
    for name, axis in AXES.items():
        print(f"axis  {name:20} {axis.family} over {axis.size}: {', '.join(map(str, axis.values))}")
    return 0


RUN: dict[str, Callable[[Namespace], int]] = {
    "list": _list, "time": _time, "memory": _memory, "peak": _peak,
    "growth": _growth, "plan": _plan, "all": _all, "write": _write,
}  # fmt: skip
