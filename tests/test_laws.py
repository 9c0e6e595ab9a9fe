"""What must hold of every problem of the zoo, whatever its figures are."""

from functools import cache

import pytest
import torch
from torch import nn
from zoo import EXACT, PROBLEMS, measure
from zoo.measured import train_window
from zoo.pending import cases
from zoo.problem import N

import gradscope

EVERY = pytest.mark.parametrize("problem", cases(EXACT), ids=str)
#: Problems whose samples add the same in any micro-batch.
SEPARABLE = pytest.mark.parametrize("problem", cases(p for p in EXACT if p.separable), ids=str)
NUMBERS = ("grad_norm", "trace_cov", "grad_sq", "noise_scale", "snr", "diversity")


@cache
def whole(problem):
    return measure(problem)


def close(a, b, rtol=1e-9):
    a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12, equal_nan=True)


def assert_same(found, expected, *, order=None):
    """Two reports agree; ``found`` has the samples in this order."""
    assert set(found.parameters) == set(expected.parameters)
    for name in ("total", *expected.parameters):
        a = found.total if name == "total" else found.parameters[name]
        b = expected.total if name == "total" else expected.parameters[name]
        for figure in NUMBERS:
            close(getattr(a, figure), getattr(b, figure))
        close(a.sample_norms, b.sample_norms if order is None else b.sample_norms[order])


@EVERY
def test_contributions_sum_to_the_gradient_in_every_direction(problem):
    """Σ wᵢgᵢ = .grad, seen through the check of the window: two random probes, and the norm at the leaf."""
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, batch_dim=problem.batch_dim) as scope:
        train_window(problem, model, optimizer)
        report = scope.last
    for name, parameter in model.named_parameters():
        assert report.coverage[name].error < 1e-12
        close(report.parameters[name].grad_norm, float(parameter.grad.to_dense().norm()))
    close(report.total.grad_norm**2, sum(stats.grad_norm**2 for stats in report.parameters.values()))


@EVERY
def test_mean_square_of_the_samples_splits_into_gradient_and_noise(problem):
    """mean‖gᵢ‖² = ‖ḡ‖² + (n-1)/n · trΣ, and ‖ḡ‖² = |G|² + trΣ/n."""
    for stats in (whole(problem).total, *whole(problem).layers.values(), *whole(problem).parameters.values()):
        mean_sq = float(stats.sample_norms.square().mean())
        close(mean_sq, stats.grad_norm**2 + (N - 1) / N * stats.trace_cov)
        close(stats.grad_norm**2, stats.grad_sq + stats.trace_cov / N)


@SEPARABLE
@pytest.mark.parametrize("split", [(1, 5), (2, 2, 2), (3, 1, 2), (1,) * 6], ids=str)
def test_how_a_window_is_split_changes_nothing(problem, split):
    found = measure(problem, split=split)
    assert found.micro_steps == len(split)
    assert_same(found, whole(problem))


@SEPARABLE
def test_how_a_window_is_split_changes_no_elementwise_moment(problem):
    found, expected = (measure(problem, split=split, watch={"moments": True}) for split in ((1, 2, 3), (6,)))
    assert expected.parameters
    for name, stats in expected.parameters.items():
        torch.testing.assert_close(found.parameters[name].variance, stats.variance, rtol=1e-9, atol=1e-12)


@EVERY
def test_permuting_samples_permutes_the_norms_and_changes_nothing_else(problem):
    order = [3, 0, 5, 1, 4, 2]
    assert_same(measure(problem, order=order), whole(problem), order=order)


@EVERY
def test_a_scaled_loss_scales_the_figures(problem):
    c = 8.0
    found, expected = measure(problem, scale=c), whole(problem)
    for name in ("total", *expected.parameters):
        a = found.total if name == "total" else found.parameters[name]
        b = expected.total if name == "total" else expected.parameters[name]
        close(a.grad_norm, c * b.grad_norm)
        close(a.sample_norms, c * b.sample_norms)
        close(a.trace_cov, c**2 * b.trace_cov)
        close(a.grad_sq, c**2 * b.grad_sq)
        for figure in ("noise_scale", "snr", "diversity"):
            close(getattr(a, figure), getattr(b, figure))


@EVERY
def test_later_windows_agree_with_the_first(problem):
    """What was learnt in the first window (layouts, hooks, guard) changes no figure of the next ones."""
    assert_same(measure(problem, windows=3), whole(problem))


@pytest.mark.parametrize("problem", cases(PROBLEMS), ids=str)
def test_a_parameter_counts_once_and_squares_add_up(problem):
    found = whole(problem)
    names = dict(problem.model().named_parameters())
    assert set(found.coverage) == set(names)
    assert found.total.numel == found.parameter_count == sum(p.numel() for p in names.values())
    for figure in ("trace_cov", "grad_sq"):
        close(getattr(found.total, figure), sum(getattr(s, figure) for s in found.parameters.values()))
        close(getattr(found.total, figure), sum(getattr(s, figure) for s in found.layers.values()))


class Untied(nn.Module):
    """The same computation as a model with a shared weight, each use through a parameter of its own."""

    def __init__(self, shared):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.load_state_dict(shared.state_dict())

    def forward(self, x):
        return self.second(self.first(x).tanh())


@pytest.mark.parametrize("name", ["tied Linears", "tied Linears, middle dimensions"])
def test_tied_is_the_sum_of_its_uses_before_squaring(name):
    problem = next(p for p in EXACT if p.name == name)
    untied = Untied(problem.model()).double()
    h = []
    for i in range(N):
        loss = problem.total(untied, problem.take(problem.batch(), [i])) / N
        h.append(sum(torch.autograd.grad(loss, (untied.first.weight, untied.second.weight))))
    stats = whole(problem).parameters["first.weight"]
    close(stats.sample_norms, torch.stack([N * one.norm() for one in h]))
    assert set(whole(problem).parameters) == {"first.weight", "first.bias", "second.bias"}
