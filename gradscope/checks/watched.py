"""What a test holds: the checks as methods, and scopes that are closed and reported at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gradscope import checks
from gradscope.checks.expectations import check_expectations
from gradscope.checks.failures import ExpectationFailure
from gradscope.checks.golden import check_golden
from gradscope.coverage import Coverage
from gradscope.errors import GradscopeError
from gradscope.report import Report
from gradscope.scope import Scope, watch


class GradientCheck:
    """The fixture ``gradient_check``: ``watch``, ``golden``, and every check of ``gradscope.checks`` as a method.

    It knows nothing of pytest: ``finish`` and ``close`` are called by whoever made it.
    """

    assert_accumulates = staticmethod(checks.assert_accumulates)
    assert_every_parameter_learns = staticmethod(checks.assert_every_parameter_learns)
    assert_finite = staticmethod(checks.assert_finite)
    assert_gradients = staticmethod(checks.assert_gradients)
    assert_no_leakage = staticmethod(checks.assert_no_leakage)
    assert_per_sample = staticmethod(checks.assert_per_sample)
    assert_rule = staticmethod(checks.assert_rule)
    assert_unbiased = staticmethod(checks.assert_unbiased)
    diagnose = staticmethod(checks.diagnose)
    loop = staticmethod(checks.loop)

    def __init__(self, golden_folder: Path, *, update_golden: bool = False, option: str = "") -> None:
        self._golden_folder, self._update_golden, self._option = golden_folder, update_golden, option
        self._scopes: list[tuple[Scope, bool]] = []
        self.reports: list[Report] = []

    def watch(self, model: nn.Module, *optimizers: Any, **options: Any) -> Scope:
        """``gradscope.watch`` with the same arguments; closed at the end of the test."""
        scope = watch(model, *optimizers, **options)
        self._scopes.append((scope, bool(optimizers)))
        return scope

    def golden(self, name: str, gradients: Any) -> None:
        """Compare with what was recorded under this name; see ``gradscope.checks.golden.check_golden``.

        Raises:
            GoldenFailure: nothing is recorded, or figures differ.
        """
        __tracebackhide__ = True
        check_golden(name, gradients, self._golden_folder, update=self._update_golden, option=self._option)

    def finish(self, expected: Mapping[str, Any], *, strict: bool = False) -> None:
        """Close every scope, keep the reports, and require what the test expects of them.

        Args:
            expected: see ``check_expectations``.
            strict: a window must have been closed, and no parameter's figures may be missing or withheld.

        Raises:
            ExpectationFailure: a report is not as expected, or something is expected and nothing was watched.
        """
        __tracebackhide__ = True
        scopes = list(self._scopes)
        self.close()
        if expected and not scopes:
            raise ExpectationFailure("The test has expectations (mark.gradscope), but it watched no model.")
        for report in self.reports:
            if (expected or strict) and not report.windows:
                raise ExpectationFailure(
                    "A model was watched, but no window was closed: call optimizer.step() on a watched optimizer, or "
                    "scope.step().",
                    report,
                )
            check_expectations(report, expected)
            if strict:
                _require_figures(report)

    def close(self) -> None:
        """Close every scope and keep its report."""
        for scope, has_optimizer in self._scopes:
            try:
                if scope.last is None and not has_optimizer:
                    scope.step()
            except GradscopeError:
                pass  # closed by the test itself, or nothing to close: its report says so
            self.reports.append(scope.report(last=10**9))
            scope.close()
        self._scopes = []


def _require_figures(report: Report) -> None:
    __tracebackhide__ = True
    missing: list[tuple[str, Coverage]] = [
        (name, c)
        for name, c in report.coverage.items()
        if c.status in ("not measured", "mismatch") and not c.reason.startswith("ignored")
    ]
    if missing:
        lines = [f"  {name}: {c.status}. {c.reason}".rstrip() for name, c in missing[:8]]
        raise ExpectationFailure("\n".join(["Strict: some parameters have no figures:", *lines]), report)
