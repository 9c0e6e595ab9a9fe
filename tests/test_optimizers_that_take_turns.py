"""Optimizers that freeze each other's parameters while they have their turn."""

import torch
from torch import nn

import gradscope


def train(model, turns, steps=6, scope=None):
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    reports = []
    for _ in range(steps):
        for optimizer in turns:
            own = {id(p) for p in optimizer.param_groups[0]["params"]}
            for parameter in model.parameters():
                parameter.requires_grad_(id(parameter) in own)
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            reports.append(None if scope is None else scope.last)
    return reports


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return model, [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[2])]


def test_every_turn_is_a_window_of_its_own_and_all_parameters_are_measured():
    model, turns = build()
    with gradscope.watch(model, *turns) as scope:
        reports = train(model, turns, scope=scope)
        whole = scope.report(last=100)
    assert whole.windows == 12
    for number, report in enumerate(reports):
        mine, other = ("0.", "2.") if number % 2 == 0 else ("2.", "0.")
        assert {c.status for name, c in report.coverage.items() if name.startswith(mine)} == {"exact"}
        frozen = [c for name, c in report.coverage.items() if name.startswith(other)]
        assert {c.status for c in frozen} == {"no gradient"}
        assert all("another optimizer's" in c.reason for c in frozen)
    assert set(whole.parameters) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(stats.trace_cov > 0 for stats in whole.parameters.values())


def test_turns_are_trained_bit_for_bit_as_without_a_scope():
    plain, turns = build()
    train(plain, turns)
    watched, turns = build()
    with gradscope.watch(watched, *turns):
        train(watched, turns)
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_parameter_that_is_unfrozen_before_the_first_step_is_measured_from_then_on():
    model, _ = build()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with gradscope.watch(model, optimizer) as scope:
        for window in range(3):
            model[0].requires_grad_(window > 0)
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert scope.last.coverage["0.weight"].status == ("exact" if window else "frozen")


def test_what_fails_in_every_backward_is_said_although_there_is_no_window(monkeypatch):
    from gradscope.capture.recorder import Recorder

    def broken(self, forward):
        raise AttributeError("a fault of ours")

    monkeypatch.setattr(Recorder, "_begin", broken)
    model, _ = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        model(torch.ones(8, 5, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        assert scope.last is None
        assert any("a fault of ours" in warning for warning in scope.report().warnings)
    assert scope.report().windows == 0
