"""With capture=False a training run is bitwise the unwatched one, and the user's hooks see what they saw."""

import pytest
import torch
from torch import nn
from zoo import PROBLEMS
from zoo.measured import train_window

import gradscope


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_on_every_problem_gradients_states_and_random_numbers_are_bitwise_equal(problem):
    traces = []
    for watch in (True, False):
        model = problem.model(torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scope = gradscope.watch(model, optimizer, capture=False, batch_dim=problem.batch_dim) if watch else None
        trace = []
        for k in range(2):
            train_window(problem, model, optimizer, split=(3, 3) if problem.separable else (6,))
            trace.extend(p.grad.to_dense().clone() for p in model.parameters() if p.grad is not None)
            optimizer.zero_grad(set_to_none=bool(k))
        if scope is not None:
            assert not [warning for warning in scope.report().warnings if "failed" in warning]
            scope.close()
        traces.append([*trace, *(t.clone() for t in model.state_dict().values()), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*traces, strict=True))


def test_gradients_are_handed_over_not_copied():
    model, seen = nn.Linear(4, 3), []
    model.weight.register_hook(lambda grad: seen.append(grad.data_ptr()))
    with gradscope.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), capture=False):
        model(torch.randn(5, 4)).square().mean().backward()
        assert model.weight.grad.data_ptr() == seen[-1]


def test_the_users_hooks_on_outputs_and_parameters_see_what_they_saw():
    seen = {}
    for watch in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        noted = seen.setdefault(watch, [])
        model[0].weight.register_hook(lambda grad, noted=noted: noted.append(grad.clone()) or grad * 2)
        model[0].bias.register_post_accumulate_grad_hook(lambda p, noted=noted: noted.append(p.grad.clone()))
        scope = gradscope.watch(model, optimizer, capture=False) if watch else None
        for _ in range(3):
            output = model(torch.randn(5, 4))
            output.register_hook(lambda grad, noted=noted: noted.append(grad.clone()))
            output.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if scope is not None:
            scope.close()
    assert len(seen[True]) == len(seen[False]) == 9
    assert all(torch.equal(a, b) for a, b in zip(seen[True], seen[False], strict=True))


def test_a_failure_inside_a_hook_costs_a_line_and_not_the_run(monkeypatch):
    def fail(grad):
        raise RuntimeError("on purpose")

    monkeypatch.setattr("gradscope.increments.leaf_watch.square", fail)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, capture=False) as scope:
        for _ in range(2):
            model(torch.randn(5, 4)).square().mean().backward()
        assert model.weight.grad is not None
        optimizer.step()
        scope.step()
        assert "on purpose" in " ".join(scope.report().warnings) or not scope.report().parameters
