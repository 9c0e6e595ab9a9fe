"""Every figure of the report, on every problem of the zoo, against contributions that something slow gave."""

from functools import cache

import pytest
import torch
from zoo import PROBLEMS, contributions, figures, measure
from zoo.measured import train_window
from zoo.pending import cases
from zoo.problem import N

import gradscope

#: Relative difference that rounding may make.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))
EVERY = pytest.mark.parametrize("problem", cases(PROBLEMS), ids=str)


@cache
def truth(problem):
    return contributions(problem)


@cache
def report(problem, dtype):
    return measure(problem, dtype, watch={"moments": True})


FIGURES = ("grad_norm", "sample_norms", "trace_cov", "grad_sq", "noise_scale", "snr", "diversity", "gsnr", "variance")


def assert_figures(stats, expected, dtype, where):
    """Every figure to the dtype's relative difference; tensors relative to their norm."""
    for name in FIGURES:
        found, wanted = getattr(stats, name), getattr(expected, name)
        if name == "variance" and found is None:
            continue
        assert found is not None, f"{where}: no {name}"
        found, wanted = (torch.as_tensor(value, dtype=torch.float64).flatten() for value in (found, wanted))
        if bool(wanted.isnan().any()):
            assert name == "gsnr" or bool(found.isnan())
            continue
        error = float((found - wanted).norm() / wanted.norm()) if bool(wanted.norm() > 0) else float(found.norm())
        assert error <= TOLERANCE[dtype], f"{where}: {name} off by {error:.1e}"


@EVERY
@DTYPES
def test_parameters_agree_with_the_reference(problem, dtype):
    found = report(problem, dtype).parameters
    for name, h in truth(problem).items():
        if name not in problem.estimated:
            assert_figures(found[name], figures([h]), dtype, name)


@EVERY
@DTYPES
def test_layers_and_the_total_agree_with_the_reference(problem, dtype):
    found = report(problem, dtype)
    members = {}
    for name, h in truth(problem).items():
        members.setdefault(name.rpartition(".")[0], {})[name] = h
    for layer, parts in members.items():
        if not problem.estimated & set(parts):
            assert_figures(found.layers[layer], figures(list(parts.values())), dtype, layer)
    if not problem.estimated:
        assert_figures(found.total, figures(list(truth(problem).values())), dtype, "total")


@EVERY
@DTYPES
def test_coverage_says_how_each_parameter_was_measured(problem, dtype):
    coverage = report(problem, dtype).coverage
    assert set(coverage) == set(truth(problem))
    for name, one in coverage.items():
        assert one.status == ("estimated" if name in problem.estimated else "exact"), (name, one)
        if one.status == "exact":
            assert one.error <= {torch.float64: 1e-12, torch.float32: 1e-4}[dtype], (name, one)
            assert ("assumed" in one.reason) == (name in problem.assumed), (name, one)
    if problem.rules is not None:
        # The algorithm stands behind the rule, in parentheses.
        assert {one.rule.partition(" (")[0] for one in coverage.values()} == problem.rules


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_window_is_counted(problem):
    found = report(problem, torch.float64)
    assert (found.samples, found.window_samples, found.micro_steps, found.windows) == (N, N, 1, 1)


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.estimated], ids=str)
def test_what_reached_the_leaf_is_exact_even_where_noise_is_estimated(problem):
    found = report(problem, torch.float64).parameters
    for name in problem.estimated:
        expected = float(truth(problem)[name].sum(0).norm())
        assert found[name].grad_norm == pytest.approx(expected, rel=1e-9)
        assert found[name].sample_norms is None


@pytest.mark.parametrize("optimizer_type", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
@pytest.mark.parametrize(
    "problem", [p for p in PROBLEMS if p.name in ("Linear", "Conv2d", "tied table and head")], ids=str
)
def test_the_preconditioned_noise_scale_weighs_elements_as_adam_does(problem, optimizer_type):
    """tr(PΣ)/GᵀPG with P = 1/(√v̂ + ε), v̂ after the window's own step."""
    model = problem.model()
    optimizer = optimizer_type(model.parameters(), lr=0.0, betas=(0.9, 0.95), eps=1e-3)
    with gradscope.watch(model, optimizer, moments=True) as scope:
        for _ in range(3):
            train_window(problem, model, optimizer)
            optimizer.zero_grad()
        found = scope.last
    traces, signals = 0.0, 0.0
    for name, parameter in model.named_parameters():
        expected = figures([truth(problem)[name]])
        weight = 1 / ((optimizer.state[parameter]["exp_avg_sq"].flatten() / (1 - 0.95**3)).sqrt() + 1e-3)
        mean_sq = truth(problem)[name].sum(0).flatten().square()
        trace, signal = weight @ expected.variance, weight @ (mean_sq - expected.variance / N)
        traces, signals = traces + trace, signals + signal
        assert found.parameters[name].preconditioned_noise_scale == pytest.approx(
            ratio(trace, signal), rel=1e-9, nan_ok=True
        )
    assert found.total.preconditioned_noise_scale == pytest.approx(ratio(traces, signals), rel=1e-9, nan_ok=True)


def ratio(trace, signal):
    """Not resolved where the signal is not positive."""
    return float(trace / signal) if signal > 0 else float("nan")
