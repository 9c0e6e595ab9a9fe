"""Models without a fault, put together at random: nothing is called a mismatch, and nothing is left unmeasured without cause."""

import pytest
import torch
from random_models import random_case
from torch import nn

import gradscope

SEEDS = range(102)


def reports(seed, dtype=None, windows=4):
    model, x, loss = random_case(seed)
    if dtype is torch.float64:
        model, x = model.double(), x.double() if x.is_floating_point() else x
    half = dtype if dtype in (torch.bfloat16, torch.float16) else None
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, enabled=dtype is torch.float16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with gradscope.watch(model, optimizer, scaler=scaler) as scope:
        for _ in range(windows):
            with torch.autocast("cpu", half, enabled=half is not None):
                value = loss(model(x))
            scaler.scale(value).backward()
            # Gradients that overflow are no window: the scaler skips their step.
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if scope.last is not None:
                yield scope.last


def assert_no_alarm(report, where):
    for name, coverage in report.coverage.items():
        assert coverage.status != "mismatch", (where, name, coverage)
        if coverage.status == "not measured":
            assert "zero up to rounding" in coverage.reason, (where, name, coverage)
            continue
        assert coverage.status in ("exact", "estimated"), (where, name, coverage)
    assert report.total.sample_norms is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "autocast to bfloat16"])
def test_a_hundred_healthy_models_raise_no_alarm(dtype):
    measured = parameters = 0
    for seed in SEEDS:
        for report in reports(seed, dtype):
            assert_no_alarm(report, seed)
            measured += sum(coverage.status == "exact" for coverage in report.coverage.values())
            parameters += len(report.coverage)
    assert measured > 0.97 * parameters


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=["float64", "autocast to float16"])
def test_twenty_more_in_other_precisions_raise_none_either(dtype):
    for seed in range(300, 320):
        for report in reports(seed, dtype):
            assert_no_alarm(report, seed)


def test_a_bias_before_a_norm_has_no_gradient_but_rounding_and_raises_no_alarm():
    """Attention's key bias and whatever a norm takes out again: the gradient is zero by structure."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(3, 16), nn.GroupNorm(1, 7), layer, nn.Linear(16, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(5):
            model(torch.randn(8, 7, 3)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert_no_alarm(scope.last, "transformer")
