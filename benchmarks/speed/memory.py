"""Peak memory of a few steps above the built model, each tool in a process of its own.

On the CPU it is the resident set's high-water mark as Linux keeps it, with an allocator that hands every large block back at
once: what the process needs, the scratch of its libraries included. A run on tiny shapes before the model is built loads
code, which is not counted.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.problem import Builder
from benchmarks.speed.timing import brief
from benchmarks.speed.tools import TOOLS
from benchmarks.speed.tools.tool import Runner

#: glibc: blocks from 64 kB on are mapped and unmapped one by one, so that the high-water mark is that of live blocks.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
MEGABYTE = 2**20


class CpuPeak:
    """High-water mark of the resident set, in bytes above a starting point."""

    def __init__(self) -> None:
        self.restart()
        self._start = self._read("VmRSS")

    def restart(self) -> None:
        """Begin anew from what is held now."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError as error:
            raise RuntimeError("peak memory on the CPU is read from Linux's /proc/self, which is not here") from error

    def above(self) -> int:
        """The highest since the last restart, above the starting point."""
        return self._read("VmHWM") - self._start

    def _read(self, name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0


class CudaPeak:
    """Highest number of bytes in tensors, as torch's allocator counts them."""

    def __init__(self) -> None:
        self.restart()
        self._start = torch.cuda.memory_allocated()

    def restart(self) -> None:
        """Begin anew from what is held now."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def above(self) -> int:
        """The highest since the last restart, above the starting point."""
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - self._start


def peaks(builder: Builder, tool: str, device: torch.device, *, tiny: bool) -> dict[str, float]:
    """Peaks in this process, in megabytes: of the first step (guards, tuning), and of the two after it."""
    _steps(TOOLS[tool].start(builder(device, tiny=True)), 2)
    gc.collect()
    problem = builder(device, tiny=tiny)
    meter = CudaPeak() if device.type == "cuda" else CpuPeak()
    runner = TOOLS[tool].start(problem)
    _steps(runner, 1)
    first = meter.above()
    meter.restart()
    _steps(runner, 2)
    return {"first": first / MEGABYTE, "later": meter.above() / MEGABYTE}


def _steps(runner: Runner, count: int) -> None:
    for _ in range(count):
        runner.whole_step()
        runner.clear()
    if count > 1:
        runner.close()


def in_a_process(model: str, tool: str, arguments: list[str]) -> dict[str, Any]:
    """The same in a fresh process: a line of results."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed", "peak", "--model", model, "--tools", tool]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env={**os.environ, **ALLOCATOR})
    line = {"kind": "memory", "model": model, "tool": tool}
    try:
        return line | json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return line | {"reason": f"the process ended with {done.returncode}: {done.stderr.strip()[-90:]}"}


def guarded(measure: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """What was measured, or why not."""
    try:
        return measure()
    except Exception as error:  # a tool's failure is its cell of the table
        return {"reason": brief(error)}
