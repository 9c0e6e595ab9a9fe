"""The plugin's options, fixture and marker, each in a run of its own."""

import subprocess
import sys
import textwrap

import pytest

# Runs in this process restore sys.modules, and torch cannot be imported a second time: have all of it before.
import gradscope.checks.watched  # noqa: F401

pytest_plugins = ["pytester"]

HEAD = """
import pytest
import torch
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(1)


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(12, 3).double(), torch.randn(12, 2).double()


def train(model, optimizer, batch, windows=6):
    for _ in range(windows):
        mse(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
"""


@pytest.fixture
def run(pytester):
    pytester.makeini("[pytest]\naddopts = -p no:randomly\n")

    def run(body, *arguments, name="test_it"):
        pytester.makepyfile(**{name: HEAD + textwrap.dedent(body)})
        return pytester.runpytest_inprocess(*arguments)

    return run


WATCHED = """
    def test_watched(gradient_check, model, batch):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        gradient_check.watch(model, optimizer)
        train(model, optimizer, batch)
"""


def test_the_fixture_and_marker_are_listed_for_users(pytester):
    pytester.runpytest_inprocess("--fixtures").stdout.fnmatch_lines(["gradient_check*"])
    pytester.runpytest_inprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.gradscope(max_noise_scale*"])
    pytester.runpytest_inprocess("--help").stdout.fnmatch_lines(["*--gradscope-report*", "*gradscope_golden_dir*"])


def test_a_watched_test_passes_and_its_scope_is_closed(run):
    result = run(
        WATCHED
        + """
    def test_closed_before_the_next(model):
        assert not any(m._forward_hooks for m in model.modules())
    """
    )
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*gradscope: gradients of watched tests*")


@pytest.mark.parametrize("arguments", [(), ("-n", "2"), ("-p", "no:cacheprovider")], ids=["plain", "xdist", "no cache"])
def test_report_prints_the_table_of_each_watched_test(run, arguments):
    result = run(WATCHED, "--gradscope-report", *arguments)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*gradscope: gradients of watched tests*", "test_it.py::test_watched", "*layer*noise*"]
    )


def test_report_can_be_an_ini_setting_with_its_width(run, pytester):
    pytester.makeini("[pytest]\ngradscope_report = true\ngradscope_width = 60\n")
    result = run(WATCHED)
    table = result.stdout.str().split("gradients of watched tests")[1]
    assert all(len(line) <= 60 for line in table.splitlines()[2:] if "passed" not in line and "=" not in line)


def test_a_bad_width_is_refused(run, pytester):
    pytester.makeini("[pytest]\ngradscope_width = wide\n")
    assert "a number of columns" in str(run(WATCHED).stderr)


def test_the_checks_are_methods_and_their_text_is_whole_without_vv(run):
    result = run("""
    def test_accumulates(gradient_check, model, batch):
        def step(model, micro_batches):
            for b in micro_batches:
                mse(model, b).backward()

        gradient_check.assert_accumulates(step, model, mse, batch)
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E * Likely cause: not divided",
            "E * What to change:",
            "E * loss = loss_fn(model, micro_batch) / len(micro_batches)",
            "E * micro-batch  samples  counts",
            "E * 2.bias *",
        ]
    )
    result.stdout.no_fnmatch_line("*truncated*")
    result.stdout.no_fnmatch_line("*accumulation.py*def*")


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("max_noise_scale=1e-9", "*max_noise_scale=1e-09: *"),
        ("coverage='exact'", "*coverage='exact': 1 parameters have less*"),
        ("coverage=1.0", "*coverage=1: 0.9* of the parameters is measured*"),
        ("every_parameter_learns=True", "*every_parameter_learns: *2.spare*"),
    ],
)
def test_expectations_that_are_not_met_fail_the_test(run, marker, message):
    body = f"""
    @pytest.mark.gradscope({marker})
    def test_marked(gradient_check, model, batch):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        gradient_check.watch(model, optimizer, ignore=['2.bias'] if 'coverage' in {marker!r} else ())
        if "learns" in {marker!r}:
            model[2].spare = nn.Parameter(torch.zeros(1))
        train(model, optimizer, batch)
    """
    result = run(body)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_expectations_that_are_met_pass(run):
    run("""
    @pytest.mark.gradscope(finite=True, coverage="exact", every_parameter_learns=True, max_noise_scale=1e6)
    def test_marked(gradient_check, model, batch):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        gradient_check.watch(model, optimizer)
        train(model, optimizer, (batch[0], 0 * batch[1] + 5))
    """).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("decorated", "message"),
    [
        ("@pytest.mark.gradscope(finnite=True)\ndef test_it(gradient_check): pass", "*unknown expectation finnite*"),
        ("@pytest.mark.gradscope(True)\ndef test_it(gradient_check): pass", "*keyword arguments only*"),
        ("@pytest.mark.gradscope(finite=True)\ndef test_it(): pass", "*does not use the fixture gradient_check*"),
        ("@pytest.mark.gradscope(finite=True)\ndef test_it(gradient_check): pass", "*it watched no model*"),
        ("@pytest.mark.gradscope(coverage='all')\ndef test_it(gradient_check): pass", "*fraction of the parameters*"),
    ],
)
def test_a_marker_that_cannot_work_says_why(run, decorated, message):
    result = run(decorated)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])


def test_strict_fails_where_no_window_was_closed(run):
    body = """
    def test_watched(gradient_check, model, batch):
        gradient_check.watch(model, torch.optim.SGD(model.parameters(), lr=1e-3))
        mse(model, batch).backward()
    """
    run(body).assert_outcomes(passed=1)
    result = run(body, "--gradscope-strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no window was closed*"])


def test_strict_fails_where_figures_are_missing(run):
    body = """
    def test_watched(gradient_check, model, batch):
        model.insert(1, nn.BatchNorm1d(4).double())
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        gradient_check.watch(model, optimizer)
        train(model, optimizer, batch)
    """
    run(body).assert_outcomes(passed=1)
    result = run(body, "--gradscope-strict")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*some parameters have no figures*", "*0.weight: not measured*"])


def test_without_an_optimizer_the_end_of_the_test_closes_the_window(run):
    result = run(
        """
    @pytest.mark.gradscope(finite=True)
    def test_watched(gradient_check, model, batch):
        gradient_check.watch(model)
        mse(model, batch).backward()
    """,
        "--gradscope-strict",
    )
    result.assert_outcomes(passed=1)


def test_a_failing_test_keeps_its_own_error(run):
    result = run("""
    @pytest.mark.gradscope(max_noise_scale=1e-9)
    def test_watched(gradient_check, model, batch):
        gradient_check.watch(model)
        raise ZeroDivisionError("mine")
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E * mine"])


GOLDEN = """
    @pytest.mark.parametrize("factor", [FACTOR])
    def test_golden(gradient_check, model, batch, factor):
        (factor * mse(model, batch)).backward()
        gradient_check.golden("mse", model)
"""


def test_golden_gradients_are_missing_then_recorded_then_compared(run, pytester):
    missing = run(GOLDEN.replace("FACTOR", "1.0"))
    missing.assert_outcomes(failed=1)
    missing.stdout.fnmatch_lines(["E *No golden gradients are recorded*", "E *--gradscope-update-golden*"])
    run(GOLDEN.replace("FACTOR", "1.0"), "--gradscope-update-golden").assert_outcomes(passed=1)
    path = pytester.path / "golden" / "test_it" / "mse.json"
    assert path.stat().st_size < 2000
    run(GOLDEN.replace("FACTOR", "1.0")).assert_outcomes(passed=1)
    run(GOLDEN.replace("FACTOR", "1.0 + 1e-12")).assert_outcomes(passed=1)
    changed = run(GOLDEN.replace("FACTOR", "1.001"))
    changed.assert_outcomes(failed=1)
    changed.stdout.fnmatch_lines(["E *4 of 4 parameters differ*", "E *norm*1.001", "E *If the change is meant*"])
    path.write_text("{}")
    run(GOLDEN.replace("FACTOR", "1.0")).stdout.fnmatch_lines(["E *holds no golden gradients*"])


def test_golden_folder_is_an_ini_setting(run, pytester):
    pytester.makeini("[pytest]\ngradscope_golden_dir = recorded\n")
    run(GOLDEN.replace("FACTOR", "1.0"), "--gradscope-update-golden").assert_outcomes(passed=1)
    assert (pytester.path / "recorded" / "test_it" / "mse.json").exists()


def test_golden_takes_the_report_of_a_scope_too(run):
    body = """
    def test_golden(gradient_check, model, batch):
        scope = gradient_check.watch(model)
        mse(model, batch).backward()
        gradient_check.golden("report", scope.step())
    """
    run(body, "--gradscope-update-golden").assert_outcomes(passed=1)
    run(body).assert_outcomes(passed=1)


def test_the_plugin_imports_neither_torch_nor_rich(pytester):
    pytester.makepyfile(
        "def test_nothing():\n    import sys\n    assert not {'torch', 'rich', 'numpy'} & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=pytester.path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_the_plugins_own_module_costs_little_to_import():
    code = "import gradscope.pytest_plugin, sys; print(len([m for m in sys.modules if m.startswith('gradscope')]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) == 2
