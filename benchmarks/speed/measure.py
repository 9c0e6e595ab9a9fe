"""One measurement: these tools on one model, beside a plain step; as a line of results each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.speed.clock import clock_for
from benchmarks.speed.machine import machine
from benchmarks.speed.problem import Builder, Problem
from benchmarks.speed.ratios import ratios
from benchmarks.speed.timing import enter, interleave
from benchmarks.speed.tools import TOOLS
from benchmarks.speed.truth import truth


def with_baselines(names: Sequence[str]) -> list[str]:
    """These tools, after the plain steps that they are compared with."""
    return list(dict.fromkeys(["plain", *(TOOLS[name].against for name in names), *names]))


def measure(
    model: str, builder: Builder, names: Sequence[str], device: torch.device, *,
    rounds: int, limit: float = 100.0, tiny: bool = False, **sizes: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Check and time.

    Args:
        model: what the results call the model.
        builder: makes it.
        names: keys of ``TOOLS``.
        device: where to.
        rounds: interleaved runs of each.
        limit: seconds after which no further round begins.
        tiny: with the sizes of a smoke test.
        sizes: those that are to differ.

    Returns:
        A line per tool. It has times only where the tool's figures were right.

    Raises:
        NoDeviceError: the device is not here.
    """
    clock = clock_for(device)

    def build() -> Problem:
        return builder(device, tiny=tiny, **sizes)

    right = truth(build())
    contestants = {name: enter(name, TOOLS[name], build, right) for name in with_baselines(names)}
    interleave(list(contestants.values()), rounds, clock, limit)
    lines = []
    for name, each in contestants.items():
        baseline = contestants[each.tool.against].seconds
        line = {"kind": "time", "model": model, "tool": name, **asdict(each.verdict)}
        if each.seconds:
            line |= {"ratios": asdict(ratios(baseline, each.seconds)), "plain": sorted(baseline)[len(baseline) // 2]}
        lines.append(line | {"tiny": tiny, "machine": machine(device)})
        if each.runner is not None:
            each.runner.close()
    return lines
