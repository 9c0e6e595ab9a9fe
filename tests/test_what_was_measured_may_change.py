"""Layouts are remembered: what a model does with its samples later may not be what it did before."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import gradscope


def shares(model, inputs, n):
    """``‖gᵢ‖`` of every parameter, by one backward for each row of the output."""
    output = model(*inputs)
    cotangent = 2 * output.detach()
    rows = []
    for i in range(n):
        one = torch.zeros_like(cotangent)
        one[i] = cotangent[i]
        grads = torch.autograd.grad(output, list(model.parameters()), one, retain_graph=True)
        rows.append(torch.stack([n * grad.norm() for grad in grads]))
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.stack(rows).T, strict=True))


def window(scope, model, inputs):
    model.zero_grad()
    model(*inputs).square().sum().backward()
    return scope.step()


def agrees(report, truth):
    for name, norms in truth.items():
        assert report.coverage[name].status == "exact", (name, report.coverage[name])
        torch.testing.assert_close(report.parameters[name].sample_norms, norms.double(), rtol=1e-9, atol=1e-12)


class Folded(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        hidden = torch.tanh(self.first(x.reshape(-1, 3))).reshape(*x.shape[:2], 4)
        return self.second(hidden.mean(1))


def test_as_many_rows_of_other_samples_are_measured_anew():
    model = Folded().double()
    with gradscope.watch(model) as scope:
        for n, positions in ((4, 6), (4, 6), (6, 4), (3, 8), (4, 6)):
            x = torch.randn(n, positions, 3).double()
            agrees(window(scope, model, (x,)), shares(model, (x,), n))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.lstm(packed)[1][0][-1])


def test_lengths_in_another_order_are_other_rows():
    model = Packed().double()
    with gradscope.watch(model) as scope:
        for lengths in ([5, 3, 2, 1], [5, 3, 2, 1], [1, 2, 3, 5], [2, 5, 1, 3]):
            inputs = torch.randn(4, 5, 3).double(), torch.tensor(lengths)
            agrees(window(scope, model, inputs), shares(model, inputs, 4))


def test_a_norm_that_begins_to_mix_takes_the_figures_before_it():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(6, 3).double()
    with gradscope.watch(model) as scope:
        model[1].eval()
        assert window(scope, model, (x,)).coverage["0.weight"].status == "exact"
        model[1].train()
        later = window(scope, model, (x,))
    assert {later.coverage[name].status for name in ("0.weight", "0.bias", "1.weight")} == {"not measured"}
    assert later.coverage["3.weight"].status == "exact"


class SequenceInside(nn.Module):
    """Batch first outside, sequence first inside, and as many positions as samples."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


def test_a_gradient_of_zero_teaches_no_layout():
    model = SequenceInside().double()
    x = torch.randn(4, 4, 3).double()
    with gradscope.watch(model) as scope:
        window(scope, model, (x,))
        nn.init.normal_(model.head.weight)
        agrees(window(scope, model, (x,)), shares(model, (x,), 4))


class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, time, x):
        return self.layer(x) * time


def test_an_input_given_once_for_all_samples_does_not_count_them():
    model = Timed().double()
    inputs = torch.full((1,), 0.5).double(), torch.randn(5, 3).double()
    with gradscope.watch(model) as scope:
        report = window(scope, model, inputs)
    assert report.samples == 5
    agrees(report, shares(model, inputs, 5))


class OneShot(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.kept = x
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        shape, ctx.kept = ctx.kept.shape, None
        return 2 * grad.reshape(shape)


class WithOneShot(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return OneShot.apply(self.layer(x))


def test_a_backward_that_can_run_only_once_runs_once():
    model = WithOneShot()
    with gradscope.watch(model) as scope:
        report = window(scope, model, (torch.randn(4, 3),))
    assert model.layer.weight.grad is not None
    assert any("OneShot" in warning for warning in report.warnings)
    assert "assumed" in report.coverage["layer.weight"].reason


@pytest.mark.parametrize("watched", [False, True])
def test_random_numbers_drawn_in_backward_stay_the_users(watched):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(4, 3)
    scope = gradscope.watch(model) if watched else None
    hidden = model[1](model[0](x))
    hidden.register_hook(lambda grad: grad + torch.randn_like(grad))
    model[2](hidden).square().sum().backward()
    drawn = model[0].weight.grad.clone(), torch.randn(2)
    if scope is not None:
        scope.close()
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(4, 3)
    hidden = plain[1](plain[0](x))
    hidden.register_hook(lambda grad: grad + torch.randn_like(grad))
    plain[2](hidden).square().sum().backward()
    assert torch.equal(drawn[0], plain[0].weight.grad)
    assert torch.equal(drawn[1], torch.randn(2))


def test_where_two_dimensions_of_the_output_could_be_the_samples_it_is_said_that_one_was_assumed():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with gradscope.watch(model) as scope:
        square = window(scope, model, (torch.randn(4, 4, 3).double(),))
        oblong = window(scope, model, (torch.randn(4, 5, 3).double(),))
    assert all("assumed" in one.reason for one in square.coverage.values())
    assert not any(one.reason for one in oblong.coverage.values())


class TwoUses(nn.Module):
    """One use of a layer is taken out again by a softmax, up to rounding, until its scale is turned up."""

    def __init__(self, raw):
        super().__init__()
        self.layer, self.scale, self.raw = nn.Linear(3, 2), 0.0, raw
        self.offset = nn.Parameter(torch.randn(2)) if raw else None

    def through(self, x):
        return (x[:, :2] * self.offset + 0.3).sin() if self.raw else self.layer(x)

    def forward(self, x):
        kept, lost = self.through(x).sin(), self.through(x.flip(1))
        rounding = torch.log_softmax(lost[:, :1] + torch.arange(5.0).to(x) * 0.37, 1)
        return self.layer(torch.cat([kept + rounding[:, :2] + self.scale * lost, x[:, :1]], 1))


@pytest.mark.parametrize("raw", [False, True], ids=["layer", "operator"])
def test_a_use_that_adds_rounding_takes_no_figures_and_is_measured_when_it_adds_more(raw):
    torch.manual_seed(0)
    model = TwoUses(raw).double()
    x = torch.randn(5, 3).double()
    with gradscope.watch(model) as scope:
        for scale in (0.0, 0.0, 1.0, 1.0):
            model.scale = scale
            agrees(window(scope, model, (x,)), shares(model, (x,), 5))
