"""What a report says of how its parameters were measured, checked, or why they were not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gradscope.coverage import STATUSES, Coverage, Status
from gradscope.reporter.figures import power, share, short
from gradscope.reporter.glyphs import Glyphs
from gradscope.reporter.text import cut_middle

if TYPE_CHECKING:
    from gradscope.report import Report

_NAMES_SHOWN = 2
_NAME_WIDTH = 28
_CHECKED: tuple[Status, ...] = ("exact", "second pass", "mismatch")
_MEASURED: tuple[Status, ...] = ("exact", "second pass", "estimated")


def check(report: Report, glyphs: Glyphs) -> str:
    """Whether the contributions add up to what autograd gave, and how well; empty where nothing was captured."""
    coverages = [coverage for coverage in report.coverage.values() if coverage.status in _CHECKED]
    if not coverages:
        return ""
    claim = glyphs.text("Σ per-sample = .grad")
    failed = [coverage for coverage in coverages if coverage.status == "mismatch"]
    if failed:
        return f"{claim} FAILS in {_parameters(len(failed))}{_largest(failed)}: figures withheld"
    return f"{claim} {_verdict(coverages)}"


def _verdict(coverages: Sequence[Coverage]) -> str:
    unchecked = sum(math.isnan(coverage.error) for coverage in coverages)
    if unchecked == len(coverages):
        return "could not be checked"
    left_out = f", {unchecked} of {len(coverages)} parameters unchecked" if unchecked else ""
    return f"ok{_largest(coverages)}{left_out}"


def _largest(coverages: Sequence[Coverage]) -> str:
    errors = [coverage.error for coverage in coverages if not math.isnan(coverage.error)]
    return f" (largest error {power(max(errors), 1)})" if errors else ""


def summary(report: Report) -> str:
    """How many parameters have which status, and what share of the elements was measured."""
    trained = {name: found for name, found in report.coverage.items() if found.status != "frozen"}
    frozen = len(report.coverage) - len(trained)
    measured = sum(coverage.measured for coverage in trained.values())
    counts = [
        f"{count} {status}{_elements(report, status)}"
        for status in STATUSES
        if status != "frozen" and (count := sum(coverage.status == status for coverage in trained.values()))
    ]
    beside = f"; {frozen} frozen" if frozen else ""
    size = f", {short(report.parameter_count)} elements" if report.parameter_count else ""
    return f"{measured}/{_parameters(len(trained))}{size}: {', '.join(counts) or 'none'}{beside}"


def _elements(report: Report, status: Status) -> str:
    names = [name for name, coverage in report.coverage.items() if coverage.status == status]
    if status not in _MEASURED or not all(name in report.parameters for name in names):
        return ""
    return f" ({share(sum(report.parameters[name].numel for name in names), report.parameter_count)})"


def exceptions(report: Report, glyphs: Glyphs) -> list[tuple[Status, str]]:
    """One entry for all parameters that share a status and a reason: which they are, and the reason."""
    alike: dict[tuple[Status, str], list[str]] = {}
    for name, coverage in report.coverage.items():
        if coverage.status in ("exact", "frozen") and not coverage.reason:
            continue
        alike.setdefault((coverage.status, coverage.reason), []).append(name)
    return [
        (status, named(names, glyphs) + (f": {glyphs.text(reason)}" if reason else ""))
        for (status, reason), names in sorted(alike.items(), key=lambda item: -STATUSES.index(item[0][0]))
    ]


def named(names: Iterable[str], glyphs: Glyphs) -> str:
    """The first of these names, and how many more there are."""
    known = list(names)
    shown = [cut_middle(glyphs.text(name), _NAME_WIDTH, glyphs.ellipsis) for name in known]
    if len(known) <= _NAMES_SHOWN + 1:
        return ", ".join(shown)
    return f"{', '.join(shown[:_NAMES_SHOWN])} and {len(known) - _NAMES_SHOWN:,} more"


def _parameters(count: int) -> str:
    return f"{count:,} parameter{'' if count == 1 else 's'}"
