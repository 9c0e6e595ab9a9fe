"""Steps of several tools in turn, in one process, each with a model of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from benchmarks.speed.clock import Clock
from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Runner, Tool
from benchmarks.speed.truth import Truth
from benchmarks.speed.verdict import LOW_PRECISION, TOLERANCE, Verdict, judge, judge_estimates

#: Steps before the clock: allocators, caches, and the first two windows, which are checked.
WARM_UP = 3


@dataclass(slots=True, eq=False)
class Contestant:
    """A tool on its own copy of the problem, and what came of it."""

    name: str
    tool: Tool
    runner: Runner | None
    verdict: Verdict
    seconds: list[float] = field(default_factory=list)
    draws: list[float] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether it is timed: what is wrong, or does not run, is not."""
        return self.runner is not None


def enter(name: str, tool: Tool, build: Callable[[], Problem], truth: Truth) -> Contestant:
    """Start a tool, and check its figures over the first windows: a window that guards, and one that does not."""
    try:
        problem = build()
        runner = tool.start(problem)
        tolerance = TOLERANCE if problem.autocast is None else LOW_PRECISION
        verdicts = [_checked(runner, truth, tolerance) for _ in range(2)]
    except Exception as error:  # a tool's failure is its line of the table, not the program's end
        return Contestant(name, tool, None, Verdict("not run", reason=brief(error)))
    worst = next((verdict for verdict in verdicts if verdict.status == "wrong"), verdicts[-1])
    if worst.status == "none" and tool.work in ("norms", "moments", "samples"):
        worst = replace(worst, status="not run", reason="gives no figures per sample")
    if worst.status in ("wrong", "not run"):
        runner.close()
        return Contestant(name, tool, None, worst)
    return Contestant(name, tool, runner, worst)


def _checked(runner: Runner, truth: Truth, tolerance: float) -> Verdict:
    runner.step()
    gradients: dict[str, Tensor | None] = {name: leaf.grad for name, leaf in runner.parameters.items()}
    verdict = judge(runner.figures(), gradients, truth, tolerance)
    runner.clear()
    return verdict


def brief(error: Exception) -> str:
    """The first sentence of an error, for a cell of the table."""
    text = " ".join(str(error).split())
    kind = "" if type(error).__name__ == "UnavailableError" else f"{type(error).__name__}: "
    return f"{kind}{text[:90]}{'…' if len(text) > 90 else ''}"


def interleave(contestants: Sequence[Contestant], rounds: int, clock: Clock, limit: float) -> int:
    """Time them in turn, in another order each round.

    Args:
        contestants: those whose runner is None are passed over.
        rounds: how many steps of each.
        clock: of their device.
        limit: seconds after which no further round begins, once there are five.

    Returns:
        How many rounds were timed.
    """
    order = random.Random(0)
    started, present = time.perf_counter(), [each for each in contestants if each.runs]
    for step in _rounds(rounds, started, limit):
        for each in order.sample(present, len(present)):
            runner = each.runner
            if runner is None:
                continue
            taken = clock.seconds(runner.step)
            if step >= WARM_UP:
                each.seconds.append(taken)
                trace = runner.figures().trace_cov if each.tool.work == "less" else None
                each.draws += [] if trace is None else [trace]
            runner.clear()
            clock.settle()
    return len(present[0].seconds) if present else 0


def _rounds(rounds: int, started: float, limit: float) -> Iterator[int]:
    for step in range(WARM_UP + rounds):
        if step >= WARM_UP + 5 and time.perf_counter() - started > limit:
            return
        yield step


def conclude(contestant: Contestant, truth: Truth) -> Verdict:
    """The verdict, for estimates only now that there are many."""
    if contestant.verdict.status == "none" and contestant.draws:
        return judge_estimates(contestant.draws, truth)
    return contestant.verdict
