"""Samples with many positions are recognised by sums over groups of rows: as sure as row by row, at a fraction of the memory."""

import pytest
import torch
from torch import nn

import gradscope
from gradscope.capture.layout import BatchDim
from gradscope.capture.tagged_rows import TaggedRows

N, T = 4, 70


class Inside(nn.Module):
    """A layer that reads samples in another order than the model does, and hands them back in place."""

    def __init__(self, there, back):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.there, self.back = there, back

    def forward(self, x):
        return self.back(torch.tanh(self.second(torch.tanh(self.first(self.there(x))))))


def turned(x):
    """As many rows as before in every dimension, in the order of positions."""
    return x.transpose(0, 1).reshape(x.shape)


def turned_back(x):
    return x.reshape(x.shape[1], x.shape[0], -1).transpose(0, 1)


def norms(model, x):
    output = model(x)
    cotangent, rows = 2 * output.detach(), []
    for i in range(N):
        one = torch.zeros_like(cotangent)
        one[i] = cotangent[i]
        grads = torch.autograd.grad(output, list(model.parameters()), one, retain_graph=True)
        rows.append(torch.stack([N * grad.norm() for grad in grads]))
    return dict(zip([name for name, _ in model.named_parameters()], torch.stack(rows).T, strict=True))


def windows(model, count=3):
    x = torch.randn(N, T, 3).double()
    reports = []
    with gradscope.watch(model) as scope:
        for _ in range(count):
            model.zero_grad()
            model(x).square().sum().backward()
            reports.append(scope.step())
    return norms(model, x), reports


def agrees(report, truth):
    for name, expected in truth.items():
        assert report.coverage[name].status == "exact", (name, report.coverage[name])
        assert not report.coverage[name].reason
        torch.testing.assert_close(report.parameters[name].sample_norms, expected, rtol=1e-9, atol=1e-12)


def same(x):
    return x


ORDERS = {
    "in order": (same, same),
    "backwards": (lambda x: x.flip(0), lambda x: x.flip(0)),
    "moved on by one": (lambda x: x.roll(1, 0), lambda x: x.roll(-1, 0)),
    "positions first": (lambda x: x.transpose(0, 1), lambda x: x.transpose(0, 1)),
    "flat": (lambda x: x.reshape(N * T, -1), lambda x: x.reshape(N, T, -1)),
}


@pytest.mark.parametrize("order", ORDERS)
def test_samples_are_found_in_the_first_window(order):
    torch.manual_seed(0)
    truth, reports = windows(Inside(*ORDERS[order]).double())
    for report in reports:
        agrees(report, truth)


def test_rows_in_an_order_that_no_dimension_shows_are_withheld_once_and_then_exact():
    torch.manual_seed(0)
    truth, (first, *later) = windows(Inside(turned, turned_back).double())
    assert {coverage.status for coverage in first.coverage.values()} == {"not measured"}
    for report in later:
        agrees(report, truth)


@pytest.mark.parametrize("positions", [1, T])
def test_samples_that_interact_are_never_measured(positions):
    def mixed(x):
        weight = (torch.arange(T) < positions).double()[:, None]
        return x - weight * x.mean(0, keepdim=True)

    torch.manual_seed(0)
    _, reports = windows(Inside(same, mixed).double())
    for report in reports:
        assert {coverage.status for coverage in report.coverage.values()} == {"not measured"}
        assert all("samples interact" in coverage.reason for coverage in report.coverage.values())


@pytest.mark.parametrize("seed", range(40))
def test_rows_that_are_all_alike_are_placed_whatever_is_drawn(seed):
    """The mean over positions sends every row of a sample the same gradient: sums with mere signs would vanish now and then."""
    grad = torch.randn(4, 1, 6, dtype=torch.float64).expand(4, 32, 6).contiguous()
    tags = torch.tensor([1.0, -1.5, 2.0, -1.25], dtype=torch.float64)
    tagged = TaggedRows(grad * tags[:, None, None], 2, 4, torch.Generator().manual_seed(seed))
    layout, _ = tagged.layout(grad, tags, [0], torch.float64)
    assert layout == BatchDim(0, measured=True)
