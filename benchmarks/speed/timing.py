"""Steps of several tools in turn, in one process, each with a model of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from benchmarks.speed.clock import Clock
from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Runner, Tool
from benchmarks.speed.truth import Truth
from benchmarks.speed.verdict import LOW_PRECISION, TOLERANCE, Verdict, judge, judge_estimates

#: Steps after which a tool does what it has put off: a report every 16 steps, say.
BLOCK = 16
#: Estimates whose mean is checked, of tools that give no more.
DRAWS = 12
#: Steps before the clock: allocators and caches; the first windows were checked. One, where a tool takes too long for more.
WARM_UP, SHORT_WARM_UP = 3, 1
#: Rounds up to which a measurement is such a one.
FEW = 5


@dataclass(slots=True, eq=False)
class Contestant:
    """A tool on its own copy of the problem, and what came of it."""

    name: str
    tool: Tool
    runner: Runner | None
    verdict: Verdict
    seconds: list[float] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether it is timed: what is wrong, or does not run, is not."""
        return self.runner is not None


def enter(name: str, tool: Tool, build: Callable[[], Problem], truth: Truth) -> Contestant:
    """Start a tool, and check its figures over the first windows: a window that guards, and one that does not."""
    try:
        problem = build()
        runner = tool.start(problem)
        steps = 2 if tool.ours else 1
        verdict = _checked(runner, truth, steps, TOLERANCE if problem.autocast is None else LOW_PRECISION)
    except Exception as error:  # a tool's failure is its line of the table, not the program's end
        return Contestant(name, tool, None, Verdict("not run", reason=brief(error)))
    if verdict.status == "none" and tool.work in ("norms", "moments", "samples"):
        verdict = replace(verdict, status="not run", reason="gives no figures per sample")
    if verdict.status in ("wrong", "not run"):
        runner.close()
        return Contestant(name, tool, None, verdict)
    return Contestant(name, tool, runner, verdict)


def _checked(runner: Runner, truth: Truth, steps: int, tolerance: float) -> Verdict:
    verdicts, draws = [], []
    while len(verdicts) < steps or (len(draws) == len(verdicts) < DRAWS and verdicts[-1].status == "none"):
        runner.whole_step()
        gradients: dict[str, Tensor | None] = {name: leaf.grad for name, leaf in runner.parameters.items()}
        figures = runner.figures()
        verdicts.append(judge(figures, gradients, truth, tolerance))
        draws += [] if figures.trace_cov is None else [figures.trace_cov]
        runner.clear()
    wrong = [verdict for verdict in verdicts if verdict.status == "wrong"]
    if not wrong and verdicts[-1].status == "none" and len(draws) == len(verdicts):
        return judge_estimates(draws, truth)
    return wrong[0] if wrong else verdicts[-1]


def brief(error: Exception) -> str:
    """The first sentence of an error, for a cell of the table."""
    text = " ".join(str(error).split())
    kind = "" if type(error).__name__ == "UnavailableError" else f"{type(error).__name__}: "
    return f"{kind}{text[:120]}{'…' if len(text) > 120 else ''}"


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
    order, started = random.Random(0), time.perf_counter()
    present = [(each, each.runner) for each in contestants if each.runner is not None]
    timed, warm_up = 0, WARM_UP if rounds > FEW else SHORT_WARM_UP
    for step in range(warm_up + rounds):
        if timed >= FEW and time.perf_counter() - started > limit:
            break
        for each, runner in order.sample(present, len(present)):
            taken = clock.seconds(runner.whole_step)
            runner.clear()
            clock.settle()
            if step >= warm_up:
                each.seconds.append(taken)
            elif step == warm_up - 1:
                runner.settle()
        timed = max(step + 1 - warm_up, 0)
        if timed and timed % BLOCK == 0:
            _share_out(present, clock, BLOCK)
    _share_out(present, clock, timed % BLOCK)
    return timed


def _share_out(present: Sequence[tuple[Contestant, Runner]], clock: Clock, steps: int) -> None:
    """Add to each of the last steps its share of what the tools have put off."""
    for each, runner in present if steps else ():
        share = clock.seconds(runner.settle) / steps
        each.seconds[-steps:] = [taken + share for taken in each.seconds[-steps:]]
