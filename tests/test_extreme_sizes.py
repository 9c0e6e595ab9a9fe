"""Gradients whose squares overflow: said in the report, and nowhere else."""

import math
import warnings

import pytest
import torch
from torch import nn

import gradscope


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("scale", [1e22, 1e30, math.inf, math.nan], ids=str)
@pytest.mark.parametrize("size", [(6, 4), (6, 3, 4)], ids=["rows", "positions"])
def test_no_warning_of_numpy_or_torch_reaches_the_user(size, scale, moments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with warnings.catch_warnings(), gradscope.watch(model, optimizer, moments=moments) as scope:
        warnings.simplefilter("error")
        reports = []
        # Guard windows among them, and some that wait for others.
        for window in range(18):
            (model(torch.randn(size)).square().mean() * scale).backward()
            optimizer.step()
            optimizer.zero_grad()
            if window % 5 in (0, 4):
                reports.append(scope.report())
    for report in reports:
        assert {one.status for one in report.coverage.values()} == {"exact"}
        assert any(text.startswith("the gradient is not finite in") for text in report.warnings)
        assert not any("failed" in text for text in report.warnings)


class Net(nn.Module):
    """A table, a norm, a layer over positions, one over rows, one that is frozen out by a factor of zero."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)
        self.unused = nn.Linear(16, 3)

    def forward(self, ids):
        hidden = torch.tanh(self.hidden(self.norm(self.table(ids))))
        return self.head(hidden.mean(1)) + 0.0 * self.unused(hidden.mean(1))


UNUSED = {"unused.weight", "unused.bias"}


def reports(scales, dtype=torch.float32, micro_steps=1, **options):
    """One report for each window, whose loss is multiplied by its scale."""
    torch.manual_seed(0)
    model = Net().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = []
    with gradscope.watch(model, optimizer, **options) as scope:
        for scale in scales:
            for _ in range(micro_steps):
                ids = torch.randint(0, 11, (6, 7))
                (model(ids).square().mean() * scale).backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(scope.report(last=1))
    return found


OPTIONS = [{}, {"moments": True}, {"fused": True}, {"second_pass": True}, {"subsample": 3}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [1e-12, 1e-18, 1e-19, 1e-20, 1e-21, 1e-22, 1e-30, 1e-37])
def test_a_gradient_whose_squares_underflow_is_withheld_not_wrong(scale, options):
    truth = reports([1.0] * 18, torch.float64, **options)
    for expected, report in zip(truth, reports([scale] * 18, **options), strict=True):
        for name, coverage in report.coverage.items():
            if name in UNUSED:
                # Zero is no small number.
                assert coverage.status == "exact"
                assert report.parameters[name].grad_norm == 0
            elif coverage.status == "not measured":
                assert "so small" in coverage.reason
                assert name not in report.parameters
            else:
                assert coverage.status == "exact"
                found, exact = report.parameters[name], expected.parameters[name]
                assert found.grad_norm == pytest.approx(exact.grad_norm * scale, rel=1e-4)
                if "subsample" not in options:
                    torch.testing.assert_close(
                        found.sample_norms, exact.sample_norms * scale, rtol=1e-3, atol=1e-4 * scale
                    )
    measured = {name for name, one in report.coverage.items() if one.status == "exact"}
    assert measured == (set(report.coverage) if scale == 1e-12 else UNUSED if scale < 1e-19 else measured)


def test_a_gradient_that_is_large_again_is_measured_at_once():
    found = reports([1e-22] * 18 + [1.0] * 2)
    assert {name for name, one in found[17].coverage.items() if one.status == "exact"} == UNUSED
    for report in found[18:]:
        assert {one.status for one in report.coverage.values()} == {"exact"}


def test_in_double_precision_the_same_gradient_is_measured():
    for report in reports([1e-22] * 18, torch.float64):
        assert {one.status for one in report.coverage.values()} == {"exact"}


def test_what_micro_steps_alone_tell_of_such_a_gradient_is_withheld_too():
    small, usual = (reports([scale] * 2, micro_steps=3, capture=False)[-1] for scale in (1e-20, 1.0))
    for name, coverage in small.coverage.items():
        if name not in UNUSED:
            assert coverage.status == "not measured", name
            assert "so small" in coverage.reason
            assert usual.coverage[name].status == "estimated"
