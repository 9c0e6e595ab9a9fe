"""The pytest plugin: every hook in this one file. Nothing here imports torch or rich until a test asks for it."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gradscope.checks.watched import GradientCheck

_CHECK = pytest.StashKey["GradientCheck"]()
_UPDATE = "--gradscope-update-golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options and ini settings, all of which begin with ``gradscope``."""
    group = parser.getgroup("gradscope", "gradients (gradscope)")
    group.addoption(
        "--gradscope-report", action="store_true", help="print the noise tables of watched tests at the end"
    )
    group.addoption(_UPDATE, action="store_true", help="record golden gradients instead of comparing with them")
    group.addoption(
        "--gradscope-strict", action="store_true", help="watched tests fail where any parameter's figures are missing"
    )
    parser.addini("gradscope_report", "as --gradscope-report", type="bool", default=False)
    parser.addini("gradscope_strict", "as --gradscope-strict", type="bool", default=False)
    parser.addini("gradscope_golden_dir", "folder of golden gradients, beside each test file", default="golden")
    parser.addini("gradscope_width", "width of the tables of --gradscope-report", default="100")


def pytest_configure(config: pytest.Config) -> None:
    """The marker, and the settings that can be wrong."""
    config.addinivalue_line(
        "markers",
        "gradscope(max_noise_scale, finite, coverage, every_parameter_learns): what the report of a test's watched models "
        "must be like (fixture gradient_check).",
    )
    width = config.getini("gradscope_width")
    if not str(width).isdigit() or int(width) < 40:
        raise pytest.UsageError(f"gradscope_width = {width!r}: a number of columns, at least 40.")


@pytest.fixture
def gradient_check(request: pytest.FixtureRequest) -> Generator[GradientCheck, None, None]:
    """Watch models, check gradients, compare golden gradients; scopes are closed at the test's end."""
    from gradscope.checks.watched import GradientCheck

    config = request.config
    folder = Path(request.path).parent / config.getini("gradscope_golden_dir") / Path(request.path).stem
    check = GradientCheck(folder, update_golden=config.getoption(_UPDATE), option=_UPDATE)
    request.node.stash[_CHECK] = check
    yield check
    check.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """After the test's own code: close its scopes and hold their reports against the marker."""
    expected = _expected(item)
    result = yield
    check = item.stash.get(_CHECK, None)
    if check is not None:
        try:
            check.finish(expected, strict=_set(item.config, "strict"))
        except AssertionError as failure:  # its text stands alone: a traceback would lead into this plugin
            pytest.fail(str(failure), pytrace=False)
    elif expected:
        pytest.fail("The test is marked gradscope(...) but does not use the fixture gradient_check.", pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Give the tables to the test's report, as text: so they travel from xdist's workers."""
    report = yield
    check = item.stash.get(_CHECK, None)
    if report.when == "teardown" and check is not None and _set(item.config, "report"):
        width = int(item.config.getini("gradscope_width"))
        report.gradscope_tables = [one.render(width) for one in check.reports]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The tables of watched tests, in the order in which the tests ran."""
    if not _set(config, "report"):
        return
    seen = False
    for reports in list(terminalreporter.stats.values()):
        for report in reports:
            for table in getattr(report, "gradscope_tables", ()):
                if not seen:
                    terminalreporter.section("gradscope: gradients of watched tests")
                    seen = True
                terminalreporter.write_line(f"{report.nodeid}")
                terminalreporter.write_line(_printable(table, terminalreporter))
                terminalreporter.write_line("")


def _set(config: pytest.Config, name: str) -> bool:
    return bool(config.getoption(f"--gradscope-{name}") or config.getini(f"gradscope_{name}"))


def _expected(item: pytest.Item) -> dict[str, Any]:
    """All of the test's markers together; the nearest wins."""
    markers = list(item.iter_markers("gradscope"))
    if not markers:
        return {}
    from gradscope.checks.expectations import check_expectations_exist
    from gradscope.errors import GradscopeError

    expected: dict[str, Any] = {}
    for marker in reversed(markers):
        if marker.args:
            pytest.fail("mark.gradscope takes keyword arguments only, for example finite=True.", pytrace=False)
        expected |= marker.kwargs
    try:
        check_expectations_exist(expected)
    except GradscopeError as error:
        pytest.fail(str(error), pytrace=False)
    return expected


def _printable(text: str, reporter: pytest.TerminalReporter) -> str:
    """What this terminal's encoding can show: ‖ and ▁ are not in every one."""
    encoding = getattr(reporter._tw._file, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
