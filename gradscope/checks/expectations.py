"""What a watched test expects of its report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradscope.checks.failures import ExpectationFailure
from gradscope.coverage import STATUSES
from gradscope.errors import InvalidArgumentError
from gradscope.report import Report

EXPECTATIONS = ("max_noise_scale", "finite", "coverage", "every_parameter_learns")


def check_expectations_exist(expected: Mapping[str, Any]) -> None:
    """Refuse what no report can be asked.

    Raises:
        InvalidArgumentError: an unknown name, or a value of the wrong kind.
    """
    unknown = [name for name in expected if name not in EXPECTATIONS]
    if unknown:
        raise InvalidArgumentError(
            f"mark.gradscope: unknown expectation {', '.join(unknown)}; there are {', '.join(EXPECTATIONS)}."
        )
    coverage = expected.get("coverage")
    if coverage is not None and coverage not in STATUSES and not isinstance(coverage, int | float):
        raise InvalidArgumentError(
            f"mark.gradscope(coverage={coverage!r}): a fraction of the parameters that are measured (1.0 is all), or the "
            f"least status: {', '.join(STATUSES[:3])}."
        )


def check_expectations(report: Report, expected: Mapping[str, Any]) -> None:
    """Require what the marker says of a report.

    Args:
        report: over all windows of the test.
        expected: ``max_noise_scale``: the total noise scale is resolved and at most this; ``finite``: no norm is NaN or
            infinite; ``coverage``: every parameter that gets a gradient has at least this status, or this fraction of
            parameter elements is measured; ``every_parameter_learns``: every one gets a gradient that is not zero.

    Raises:
        ExpectationFailure: says which; ``.diagnosis`` is the report.
        InvalidArgumentError: an expectation does not exist.
    """
    check_expectations_exist(expected)
    checks = {
        "max_noise_scale": _noise_scale,
        "finite": _finite,
        "coverage": _coverage,
        "every_parameter_learns": _learns,
    }
    problems = [
        problem
        for name, value in expected.items()
        if value is not None and value is not False and (problem := checks[name](report, value))
    ]
    if problems:
        raise ExpectationFailure("\n".join(["The watched gradients are not as this test expects:", *problems]), report)


def _noise_scale(report: Report, most: float) -> str:
    found = report.total.noise_scale
    if found <= most:
        return ""
    if math.isnan(found):
        return f"  max_noise_scale={most:g}: the noise scale is not resolved; the gradient cannot be told from noise."
    return f"  max_noise_scale={most:g}: the noise scale is {found:.4g} samples."


def _finite(report: Report, wanted: bool) -> str:
    bad = [name for name, stats in report.parameters.items() if not math.isfinite(stats.grad_norm)]
    return f"  finite: the gradient is not finite in {', '.join(bad[:8])}." if bad else ""


def _coverage(report: Report, least: str | float) -> str:
    if isinstance(least, str):
        allowed = STATUSES[: STATUSES.index(least) + 1]
        short = {name: c for name, c in report.coverage.items() if c.status not in (*allowed, "frozen", "no gradient")}
        lines = [f"    {name}: {c.status}{f' ({c.reason})' if c.reason else ''}" for name, c in list(short.items())[:8]]
        return "\n".join([f"  coverage={least!r}: {len(short)} parameters have less:", *lines]) if short else ""
    share = report.total.numel / report.parameter_count if report.parameter_count else 0.0
    return f"  coverage={least:g}: {share:.3g} of the parameters is measured." if share < least else ""


def _learns(report: Report, wanted: bool) -> str:
    idle = [name for name, c in report.coverage.items() if c.status == "no gradient"]
    idle += [name for name, stats in report.parameters.items() if stats.grad_norm == 0]
    return f"  every_parameter_learns: no gradient, or a zero one, in {', '.join(idle[:8])}." if idle else ""
