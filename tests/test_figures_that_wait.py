"""Figures of ordinary windows are computed when somebody looks; when that is changes none of them."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradscope
from gradscope.evidence import read
from gradscope.judgement import explained, judge
from gradscope.moments.microstep import Measured, MicroStep


def watched(*, look, moments=False, freeze=False):
    """The last report of twelve windows of two micro-steps, without its cost in time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    scope = gradscope.watch(model, optimizer, moments=moments)
    for window in range(12):
        if freeze and window == 6:
            model[0].requires_grad_(False)
        for micro_step in range(2):
            x = torch.randn(4 + micro_step, 5, generator=generator, dtype=torch.float64)
            (F.mse_loss(model(x), x[:, :3]) / 2).backward()
            if look:
                scope.report()
        optimizer.step()
        optimizer.zero_grad()
        if look:
            scope.report()
    scope.close()
    found = scope.report().to_dict()
    del found["overhead"]
    return found


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
def test_looking_at_every_window_or_after_all_of_them_shows_the_same(moments, freeze):
    late = watched(look=False, moments=moments, freeze=freeze)
    assert repr(late) == repr(watched(look=True, moments=moments, freeze=freeze))
    assert late["coverage"]["2.weight"]["status"] == "exact"
    assert (late["coverage"]["0.weight"]["status"] == "frozen") is freeze


def covered(*, look, penalised):
    """How the parameters of a model were covered in each of eight windows, with an L2 term in some of the losses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = gradscope.watch(model, optimizer)
    for window in range(8):
        x = torch.randn(6, 5)
        loss = F.mse_loss(model(x), x[:, :3])
        (loss + (window in penalised) * model[2].weight.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if look:
            scope.report()
    scope.close()
    windows = scope._session.history.windows
    return [{name: one.status for name, one in window.coverage.items()} for window in windows]


@pytest.mark.parametrize("penalised", [(), (3,), (2, 3, 4), (7,)], ids=str)
def test_a_fault_is_found_in_the_windows_that_have_it_whenever_somebody_looks(penalised):
    late = covered(look=False, penalised=penalised)
    assert late == covered(look=True, penalised=penalised)
    # Once one is over, the average over windows remembers it for some more.
    assert all(late[window]["2.weight"] == "mismatch" for window in penalised)
    assert all(late[window]["2.weight"] == "exact" for window in range(min(penalised, default=8)))
    assert {window["0.weight"] for window in late} == {"exact"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_right_beyond_doubt_is_right_for_the_judge_too(dtype):
    generator = torch.Generator().manual_seed(0)
    records = [Measured(rule="linear", norms=torch.ones(4), probes=torch.ones(4, 1), dtype=dtype) for _ in range(400)]
    sizes = 10 ** (12 * torch.rand(400, 1, generator=generator, dtype=torch.float64) - 9)
    rows = torch.rand(400, 4, generator=generator, dtype=torch.float64) * sizes
    rows[:, 0] *= 10 ** (-9 * torch.rand(400, generator=generator, dtype=torch.float64))
    for k, value in enumerate((float("nan"), float("inf"), 0.0)):
        for column in range(4):
            rows[4 * k + column, column] = value
    step, whole = MicroStep(4, moments=False, chosen=None, budget=None), float(rows[12:, 1].sum())
    for part, model_sq in ((rows[12:], whole), (rows, float(rows[:, 1].sum()))):
        own = records[-len(part) :]
        errors, right = (found[0].tolist() for found in explained(part.numpy()[None], 4, [dtype] * len(part))[:2])
        judged = [
            judge(*pair, step, model_sq, dtype)
            for pair in zip(own, map(partial(read, samples=4), part.tolist()), strict=True)
        ]
        for error, sure, one in zip(errors, right, judged, strict=True):
            if sure:
                assert one.coverage.status == "exact"
                assert not one.coverage.reason
                assert one.coverage.error == pytest.approx(error, rel=1e-12)
    assert 50 < explained(rows[None, 12:].numpy(), 4, [dtype] * 388)[1].sum() < 388


def test_complex_rows_are_compared_with_both_of_their_parts():
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3, dtype=torch.complex128)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(), gradscope.watch(model, optimizer) as scope:
        # torch warns where an imaginary part is thrown away.
        warnings.simplefilter("error")
        for _ in range(4):
            x = torch.randn(6, 5, dtype=torch.complex128)
            model(x).abs().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            scope.report()
        assert scope.report().coverage["weight"].status == "exact"
