"""What users do to a model that could make figures wrong or cost them: each window right, or withheld with a reason."""

from threading import Thread

import pytest
import torch
from torch import nn

import gradscope

N = 6


def waves(output):
    """A loss per sample that no layer is blind to."""
    rows = output.reshape(output.shape[0], -1)
    return ((rows + 0.7).sin() * (1 + torch.arange(rows.shape[1]).remainder(3))).sum(1)


def truth(model, x):
    losses, named = waves(model(x)), list(model.named_parameters())
    rows = [torch.autograd.grad(loss, [p for _, p in named], retain_graph=True) for loss in losses]
    return {
        name: torch.stack([len(rows) * row[k].to_dense().norm() for row in rows]) for k, (name, _) in enumerate(named)
    }


def windows(model, count=4, **options):
    """Reports and what single samples say, over windows with other samples and other weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradscope.watch(model, optimizer, **options) as scope:
        for number in range(count):
            x = torch.randn(N, 3, generator=torch.Generator().manual_seed(number)).double()
            expected = truth(model, x)
            waves(model(x)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            yield scope.last, expected


def agrees(report, expected, names):
    for name in names:
        assert report.coverage[name].status == "exact", (name, report.coverage[name])
        torch.testing.assert_close(report.parameters[name].sample_norms, expected[name], rtol=1e-8, atol=1e-12)


class ScaledBehind(nn.Module):
    """The user's own hook comes after ours, and changes the gradient."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.first(x)
        hidden.register_hook(lambda grad: 2 * grad)
        return self.second(hidden.tanh())


def test_a_layer_that_is_withheld_costs_the_others_nothing_in_any_window():
    torch.manual_seed(0)
    for report, expected in windows(ScaledBehind().double()):
        assert {report.coverage[name].status for name in ("first.weight", "first.bias")} == {"mismatch"}
        agrees(report, expected, ["second.weight", "second.bias"])


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("to_none", [True, False])
def test_a_kept_graph_whose_gradients_were_cleared_belongs_to_no_window(to_none):
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradscope.watch(model, optimizer) as scope:
        for number in range(3):
            x = torch.randn(N, 3).double()
            expected = truth(model, x)
            aside = model(torch.randn(N, 3).double())
            waves(aside).sum().backward(retain_graph=True)
            optimizer.zero_grad(set_to_none=to_none)
            waves(model(x)).sum().backward(retain_graph=number == 1)
            optimizer.step()
            optimizer.zero_grad()
            agrees(scope.last, expected, expected)


def test_gradients_that_are_cleared_between_two_backwards_of_one_graph_are_withheld():
    model = plain()
    with gradscope.watch(model, torch.optim.SGD(model.parameters(), lr=0.05)) as scope:
        losses = waves(model(torch.randn(N, 3).double()))
        losses.sum().backward(retain_graph=True)
        model.zero_grad()
        losses.square().sum().backward()
        report = scope.step()
    assert {coverage.status for coverage in report.coverage.values()} == {"not measured"}
    assert all("cleared between two backwards" in coverage.reason for coverage in report.coverage.values())


class EvaluatedMeanwhile(nn.Module):
    """While a forward or backward is under way, another thread evaluates the whole model."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.inside = False

    def evaluate(self, *_):
        if not self.inside and torch.is_grad_enabled():
            self.inside = True
            thread = Thread(target=torch.no_grad()(lambda: self(torch.zeros(2, 3).double())))
            thread.start()
            thread.join()
            self.inside = False

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        self.evaluate()
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: self.elsewhere())
        return self.second(hidden)

    def elsewhere(self):
        with torch.enable_grad():
            self.evaluate()


def test_an_evaluation_in_another_thread_is_not_noticed():
    torch.manual_seed(0)
    for report, expected in windows(EvaluatedMeanwhile().double()):
        assert not report.warnings
        agrees(report, expected, expected)


class Queries(nn.Module):
    """Tokens of the model's own ask each sample, through a projection that nothing of the sample has reached yet."""

    def __init__(self):
        super().__init__()
        self.query, self.keys = nn.Parameter(torch.randn(1, 2, 4)), nn.Linear(3, 20)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        keys = self.keys(x).reshape(-1, 5, 4)
        found, _ = self.attention(self.query.expand(x.shape[0], -1, -1), keys, keys)
        return self.head(found.flatten(1))


def test_a_projection_of_query_tokens_is_exact():
    torch.manual_seed(0)
    for report, expected in windows(Queries().double()):
        agrees(report, expected, expected)


class OnceOnly(torch.autograd.Function):
    """Lets go of what its backward needs when that has run."""

    @staticmethod
    def forward(ctx, weight):
        ctx.kept = weight
        return weight.round(decimals=1)

    @staticmethod
    def backward(ctx, grad):
        scale, ctx.kept = (ctx.kept.abs() < 9).to(grad), None
        return grad * scale


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.weight = nn.Linear(3, 4), nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return nn.functional.linear(torch.tanh(self.first(x)), OnceOnly.apply(self.weight))


def test_a_function_between_a_weight_and_its_use_is_run_backward_once():
    torch.manual_seed(0)
    model = Quantised().double()
    with gradscope.watch(model, torch.optim.SGD(model.parameters(), lr=0.05)) as scope:
        for _ in range(3):
            waves(model(torch.randn(N, 3).double())).sum().backward()
            assert scope.step().coverage["weight"].status == "not measured"
            model.zero_grad()
