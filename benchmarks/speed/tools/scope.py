"""gradscope, with whatever ``watch`` is given."""

from __future__ import annotations

import inspect
from typing import Any

import gradscope
from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.plain import TwoMicroSteps
from benchmarks.speed.tools.tool import Figures, Runner, UnavailableError


def supported(settings: dict[str, Any]) -> None:
    """Refuse settings that this version of ``watch`` does not have.

    Raises:
        UnavailableError: one is unknown.
    """
    unknown = set(settings) - set(inspect.signature(gradscope.watch).parameters)
    if unknown:
        raise UnavailableError(f"this version has no {', '.join(sorted(unknown))}=")


class Watched(Runner):
    """A watched step. It ends with the window: sums over samples, checks, guards, all of it."""

    def __init__(self, problem: Problem, **settings: Any) -> None:
        super().__init__(problem)
        supported(settings)
        self.scope = gradscope.watch(problem.model, self.optimizer, **settings)

    def step(self) -> None:
        self.problem.loss().backward()

    def settle(self) -> None:
        # gradscope computes figures of several windows at once, when somebody looks at them.
        self.scope.report()

    def figures(self) -> Figures:
        report = self.scope.last
        if report is None:
            raise UnavailableError("no window was closed")
        exact = {
            name: stats
            for name, stats in report.parameters.items()
            if report.coverage[name].status in ("exact", "second pass")
        }
        return Figures(
            norms={name: stats.sample_norms for name, stats in exact.items() if stats.sample_norms is not None},
            variance={name: stats.variance for name, stats in exact.items() if stats.variance is not None},
            trace_cov=report.total.trace_cov,
        )

    def close(self) -> None:
        self.scope.close()


class Reported(Watched):
    """The same, and the report of the last windows is made at each step, as a logger would at some of them."""

    def whole_step(self) -> None:
        super().whole_step()
        self.scope.report()


class WithoutCapture(TwoMicroSteps):
    """The noise scale from micro-steps against the window: no work per sample."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        supported({"capture": False})
        self.scope = gradscope.watch(problem.model, self.optimizer, capture=False)

    def settle(self) -> None:
        self.scope.report()

    def figures(self) -> Figures:
        report = self.scope.last
        return Figures(trace_cov=report.total.trace_cov if report is not None else None)

    def close(self) -> None:
        self.scope.close()
