"""A model that does one thing in some windows and another in others: what it learnt of the one says nothing of the other."""

import pytest
import torch
from torch import nn

import gradscope

N = 6


def one_by_one(model, x):
    output = model(x)
    cotangent, rows = 2 * output.detach(), []
    for i in range(N):
        one = torch.zeros_like(cotangent)
        one[i] = cotangent[i]
        grads = torch.autograd.grad(output, list(model.parameters()), one, retain_graph=True)
        rows.append(torch.stack([N * grad.norm() for grad in grads]))
    return dict(zip([name for name, _ in model.named_parameters()], torch.stack(rows).T, strict=True))


class Two(nn.Module):
    way = 0

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)


class TurnsLater(Two):
    """Positions first from one layer on or from the other; as many positions as samples."""

    def forward(self, x):
        if self.way:
            return self.second(torch.tanh(self.first(x.transpose(0, 1))).mean(0))
        return self.second(torch.tanh(self.first(x)).transpose(0, 1).mean(0))


class FlattensEitherWay(Two):
    def forward(self, x):
        if self.way:
            hidden = self.first(x.transpose(0, 1).reshape(-1, 3)).reshape(N, N, 4).transpose(0, 1)
        else:
            hidden = self.first(x.reshape(-1, 3)).reshape(N, N, 4)
        return self.second(torch.tanh(hidden).mean(1))


class Rolls(Two):
    def forward(self, x):
        hidden = torch.tanh(self.first(x.mean(1))).roll(self.way, 0)
        return self.second(hidden).roll(-self.way, 0)


class Cuts(Two):
    """The same by slices."""

    def forward(self, x):
        hidden, cut = torch.tanh(self.first(x.mean(1))), 1 + self.way
        hidden = self.second(torch.cat([hidden[cut:], hidden[:cut]]))
        return torch.cat([hidden[-cut:], hidden[:-cut]])


@pytest.mark.parametrize("kind", [TurnsLater, FlattensEitherWay, Rolls, Cuts])
def test_each_way_has_its_own_layouts(kind):
    torch.manual_seed(0)
    model = kind().double()
    with gradscope.watch(model) as scope:
        for model.way in (0, 0, 1, 1, 0, 0, 1, 0):
            x = torch.randn(N, N, 3).double()
            truth = one_by_one(model, x)
            model.zero_grad()
            model(x).square().sum().backward()
            report = scope.step()
            for name, norms in truth.items():
                assert report.coverage[name].status == "exact", (name, report.coverage[name])
                torch.testing.assert_close(report.parameters[name].sample_norms, norms, rtol=1e-9, atol=1e-12)


class Centres(nn.Module):
    """Without a rule, and sometimes with samples that interact after it."""

    way = 0

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        hidden = self.inner(x)[0]
        return self.head((hidden - hidden.mean(0) if self.way else hidden).mean(1))


@pytest.mark.parametrize("second_pass", [False, True])
def test_samples_that_interact_now_and_then_have_no_figures_then(second_pass):
    torch.manual_seed(0)
    model = Centres().double()
    with gradscope.watch(model, second_pass=second_pass) as scope:
        for model.way in (0, 0, 1, 1, 0, 1, 1):
            model.zero_grad()
            model(torch.randn(N, 5, 3).double()).square().sum().backward()
            found = {scope.step().coverage[name].status for name, _ in model.inner.named_parameters("inner")}
            assert found == ({"not measured"} if model.way else {"exact"}), model.way


class Unread(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.read, self.unread = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        return self.read(hidden), self.unread(hidden)


def test_an_output_that_no_loss_reads_costs_no_inner_backward_after_the_first_window(monkeypatch):
    from gradscope.capture.tagging import OutputHook

    ran, run = [], OutputHook._run
    monkeypatch.setattr(OutputHook, "_run", lambda hook, grad: (ran.append(1), run(hook, grad)))
    model = Unread()
    with gradscope.watch(model) as scope:
        for _ in range(4):
            model.zero_grad()
            model(torch.randn(N, 3))[0].square().sum().backward()
            scope.step()
    assert len(ran) == 1
