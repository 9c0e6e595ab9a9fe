"""Every fault that capture could have is injected once: it is seen, named, and no figure that it touches is shown."""

import math
from dataclasses import replace

import pytest
import torch
from faults import (
    N,
    Norms,
    SquaredPerToken,
    changed,
    lost_in_one,
    mixed,
    nan_in_one,
    own_linear,
    right,
    swapped,
)
from torch import nn

import gradscope
from gradscope.capture.call import Call
from gradscope.contributions import Outer
from gradscope.contributions.uses import Uses

#: One of them is a guard window, the others are not.
WINDOWS = 4


def run(model, x, windows=WINDOWS, loss=None, **options):
    """The newest report of each of some windows on the same samples."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    reports = []
    with gradscope.watch(model, optimizer, **options) as scope:
        for _ in range(windows):
            out = model(x)
            (out.square().sum() / len(x) if loss is None else loss(out)).backward()
            optimizer.step()
            optimizer.zero_grad()
            reports.append(scope.last)
    return reports


def assert_no_figures(stats):
    for figure in ("grad_norm", "trace_cov", "grad_sq", "noise_scale", "snr", "diversity"):
        assert math.isnan(getattr(stats, figure))
    assert stats.sample_norms is None
    assert stats.reason


def assert_caught(reports, name, word, others=()):
    """The fault is said in every window, and neither the parameter nor a sum with it has figures."""
    for report in reports:
        coverage = report.coverage[name]
        assert coverage.status == "mismatch", coverage
        assert word in coverage.reason
        assert_no_figures(report.parameters[name])
        assert math.isnan(report.total.trace_cov)
        assert math.isnan(report.total.noise_scale)
        assert name in report.total.reason
        assert name in str(report)
        for other in others:
            assert report.coverage[other].status == "exact"
            assert math.isfinite(report.parameters[other].trace_cov)


def model_with(rule, tokens=False):
    """Three layers; the middle one is described by this rule."""
    layer = own_linear()
    gradscope.register_rule(layer, rule)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), layer(5, 5), nn.Tanh(), nn.Linear(5, 2))
    torch.manual_seed(4)
    return model, 0.5 + (torch.randn(N, 3, 4) if tokens else torch.randn(N, 4))


HEALTHY = ("0.weight", "0.bias", "1.bias", "3.weight", "3.bias")


def test_without_a_fault_there_is_none():
    for report in run(*model_with(right)):
        assert {coverage.status for coverage in report.coverage.values()} == {"exact"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda h: 2 * h, "differ from the gradient"),
        (lambda h: 1.01 * h, "differ from the gradient"),
        (lost_in_one, "differ from the gradient"),
        (nan_in_one, "differ from the gradient"),
        (lambda h: h.roll(1, 0), "wrong samples"),
        (swapped, "wrong samples"),
        (mixed, "wrong samples"),
        (lambda h: h.mean(0, keepdim=True).expand_as(h), "wrong samples"),
    ],
    ids=["double count", "1 %", "lost sample", "NaN in one sample", "rolled", "two swapped", "mixed", "averaged"],
)
def test_contributions_that_are_wrong_are_withheld_in_every_window(change, word):
    assert_caught(run(*model_with(changed(change))), "1.weight", word, HEALTHY)


@pytest.mark.parametrize("kind", [SquaredPerToken, Norms])
def test_contributions_that_are_squared_wrongly_are_withheld_in_every_window(kind):
    def rule(module, inputs, grad):
        found = right(module, inputs, grad)
        found["weight"] = kind(found["weight"])
        return found

    assert_caught(run(*model_with(rule, tokens=True)), "1.weight", "built in full", HEALTHY)


class Reused(nn.Module):
    """One layer three times."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        for _ in range(3):
            x = self.inner(x).tanh()
        return self.head(x)


def reused():
    torch.manual_seed(3)
    return Reused(), 0.5 + torch.randn(N, 4)


def test_a_dropped_use_is_a_mismatch(monkeypatch):
    measure = Call.measure

    def without_the_second(call, grad, last):
        if call.plan.name != "inner" or call.key[0] != 2:
            measure(call, grad, last)

    monkeypatch.setattr(Call, "measure", without_the_second)
    assert_caught(run(*reused()), "inner.weight", "differ from the gradient", ["head.weight", "head.bias"])


def test_a_use_that_is_counted_twice_is_a_mismatch_or_withheld(monkeypatch):
    measure = Call.measure

    def twice(call, grad, last):
        measure(call, grad, last)
        if call.plan.name == "inner" and call.key[0] == 2:
            measure(call, grad, last)

    monkeypatch.setattr(Call, "measure", twice)
    for report in run(*reused()):
        assert report.coverage["inner.weight"].status in ("mismatch", "not measured", "estimated")
        assert report.coverage["inner.weight"].reason
        stats = report.parameters.get("inner.weight")
        assert stats is None or stats.sample_norms is None
        assert report.coverage["head.weight"].status == "exact"


def test_omitted_cross_terms_between_uses_of_one_kind_are_withheld(monkeypatch):
    def apart(self, others):
        joined = whole(self, others)
        figures = joined.figures
        squares = sum(use.squared_norms() for use in (self, *others))
        joined.figures = lambda *args, **options: replace(figures(*args, **options), squares=squares)
        return joined

    whole = Outer.joined
    monkeypatch.setattr(Outer, "joined", apart)
    assert_caught(run(*reused()), "inner.weight", "built in full", ["head.weight", "head.bias"])


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.table(ids).tanh())


def test_omitted_cross_terms_between_table_and_head_are_withheld(monkeypatch):
    monkeypatch.setattr(Uses, "squared_norms", lambda self: sum(use.squared_norms() for use in self.uses))
    torch.manual_seed(3)
    assert_caught(run(TiedHead(), torch.randint(7, (N, 5))), "table.weight", "built in full")


def mutate_in_place(x):
    x.add_(1.0)


def mutate_data(x):
    x.data.add_(1.0)


class Frozen(nn.Module):
    """The layer's weight gradient is computed from a copy: autograd itself notices nothing."""

    def __init__(self, mutate):
        super().__init__()
        self.first, self.layer, self.mutate = nn.Linear(4, 4), CopyingLinear(4, 2), mutate

    def forward(self, x):
        h = self.first(x).tanh()
        buffer = h.clone()
        out = self.layer(buffer)
        with torch.no_grad():
            self.mutate(buffer)
        return out


class CopyingLinear(nn.Linear):
    def forward(self, x):
        return x.clone() @ self.weight.T + self.bias


gradscope.register_rule(CopyingLinear, lambda module, inputs, grad: right(module, inputs, grad))


def test_an_input_that_is_changed_in_place_is_noticed_and_the_layer_falls_back():
    torch.manual_seed(3)
    reports = run(Frozen(mutate_in_place), 0.5 + torch.randn(N, 4))
    for report in reports:
        coverage = report.coverage["layer.weight"]
        assert coverage.status in ("estimated", "not measured")
        assert "changed in place" in coverage.reason
        assert report.parameters["layer.weight"].sample_norms is None
        assert report.coverage["first.weight"].status == "exact"


def test_an_input_that_is_changed_behind_autograds_back_is_a_mismatch():
    torch.manual_seed(3)
    assert_caught(run(Frozen(mutate_data), 0.5 + torch.randn(N, 4)), "layer.weight", "differ from the gradient")


@pytest.mark.parametrize(("autocast", "windows"), [(False, 1), (True, 64)], ids=["float32", "bfloat16"])
def test_one_lost_token_of_one_of_256_samples_is_caught(autocast, windows):
    """Of 256 × 2 tokens one is left out: at once in float32; in bfloat16 as soon as its rounding is averaged away."""

    def rule(module, inputs, grad):
        lost = inputs[0].clone()
        lost.flatten(0, 1)[(inputs[0].norm(dim=2) * grad.norm(dim=2)).argmax()] = 0
        return {"weight": right(module, (lost,), grad)["weight"], "bias": right(module, inputs, grad)["bias"]}

    layer = own_linear()
    gradscope.register_rule(layer, rule)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), layer(16, 16), nn.Tanh(), nn.Linear(16, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x, y = torch.randn(256, 2, 16), torch.randint(8, (256, 2))
    with gradscope.watch(model, optimizer) as scope:
        for window in range(windows + 2):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = nn.functional.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            coverage = scope.last.coverage
            assert window < windows or coverage["1.weight"].status == "mismatch", coverage["1.weight"]
            assert {coverage[name].status for name in ("0.weight", "1.bias", "3.weight")} == {"exact"}


def test_a_fault_that_was_only_there_once_is_forgotten_by_the_next_guard():
    faulty = [True]

    def rule(module, inputs, grad):
        found = right(module, inputs, grad)
        if faulty[0]:
            found["weight"] = found["weight"].dense().roll(1, 0)
        return found

    model, x = model_with(rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    statuses = []
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(3):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            statuses.append(scope.last.coverage["1.weight"].status)
            faulty[0] = False
    assert statuses == ["mismatch", "exact", "exact"]
