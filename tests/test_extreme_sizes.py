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
