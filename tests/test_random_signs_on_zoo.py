"""Random signs, the estimator that needs no rule: unbiased on every problem, through the product's own inner backward."""

from itertools import combinations

import pytest
import torch
from zoo import PROBLEMS, contributions, figures
from zoo.measured import train_window
from zoo.problem import N

import gradscope

#: All vectors of three +1 and three -1.
SIGNS = [
    torch.tensor([1.0 if i in plus else -1.0 for i in range(N)], dtype=torch.float64)
    for plus in combinations(range(N), N // 2)
]


def estimates(problem, signs, monkeypatch, *, check=None):
    """One report per sign vector, with what rules know left out of it, so that every parameter is estimated."""
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    reports = []
    with gradscope.watch(model, optimizer, batch_dim=problem.batch_dim) as scope:
        train_window(problem, model, optimizer)  # calibration: layouts are known from here on
        recorder = scope._session.recorder
        take = recorder.deliver

        def without_rules(backward, steps):
            for step in steps:
                for record in step.measured.values():
                    record.norms = record.probes = record.sketch = None
                    record.spoiled = False
            take(backward, steps)

        recorder.deliver = without_rules
        for one in signs:
            for draw in ("balanced_signs", "distinct_tags"):
                monkeypatch.setattr(f"gradscope.capture.tagging.{draw}", lambda n, generator, one=one: one.clone())
            recorder.guarding = False
            recorder.estimated = set(range(len(recorder.leaves)))
            optimizer.zero_grad()
            train_window(problem, model, optimizer)
            reports.append(scope.last)
            if check is not None:
                check(model)
    return reports


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_mean_over_all_balanced_sign_vectors_is_the_trace(problem, monkeypatch):
    truth = contributions(problem)
    plain = problem.model()
    train_window(problem, plain, torch.optim.SGD(plain.parameters(), lr=0.0))
    state = []

    def untouched(model):
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a.grad.to_dense(), b.grad.to_dense())
        state.append(torch.get_rng_state())

    reports = estimates(problem, SIGNS, monkeypatch, check=untouched)
    assert all(torch.equal(one, state[0]) for one in state)
    for name, h in truth.items():
        assert {report.coverage[name].status for report in reports} == {"estimated"}
        expected = figures([h])
        mean = sum(report.parameters[name].trace_cov for report in reports) / len(reports)
        # The estimate is a difference: its rounding is that of n‖ḡ‖².
        assert abs(mean - expected.trace_cov) <= 1e-12 * (expected.trace_cov + N * expected.grad_norm**2), name
    total = sum(report.total.trace_cov for report in reports) / len(reports)
    assert total == pytest.approx(figures(list(truth.values())).trace_cov, rel=1e-11)


def test_single_estimates_scatter_about_the_trace():
    problem = next(p for p in PROBLEMS if p.name == "distances to centers")
    truth = figures([contributions(problem)["centers"]]).trace_cov
    with pytest.MonkeyPatch.context() as patch:
        found = [report.parameters["centers"].trace_cov for report in estimates(problem, SIGNS, patch)]
    assert min(found) < truth < max(found)


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.estimated], ids=str)
def test_what_only_random_signs_measure_has_no_per_sample_figures_and_says_why(problem):
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, batch_dim=problem.batch_dim) as scope:
        for _ in range(2):
            train_window(problem, model, optimizer)
            optimizer.zero_grad()
            for name in problem.estimated:
                coverage, stats = scope.last.coverage[name], scope.last.parameters[name]
                assert (coverage.status, coverage.rule) == ("estimated", "random signs")
                assert coverage.reason
                assert stats.sample_norms is None
                assert stats.trace_cov == stats.trace_cov
