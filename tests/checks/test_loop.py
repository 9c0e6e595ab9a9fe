"""The live check of a user's own loop."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gradscope import checks
from gradscope.errors import InvalidArgumentError


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.fixture
def loader():
    return DataLoader(TensorDataset(torch.randn(28, 3), torch.randn(28, 2)), batch_size=4)


def train(model, optimizer, batches, k=3, divide=None, zero=True, total=7, clip=None):
    for i, b in enumerate(batches):
        (mse(model, b) / (divide or k)).backward()
        if (i + 1) % k == 0 or i + 1 == total:
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if zero:
                optimizer.zero_grad()


def test_a_right_loop_passes_and_trains_as_without_the_check(loader):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    twin = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with checks.loop(model, optimizer, mse) as check:
        train(model, optimizer, check.batches(loader), k=7, clip=0.1)
        train(model, optimizer, check.batches(loader), k=1, clip=0.1)
    assert check.windows == 8
    other = torch.optim.Adam(twin.parameters(), lr=0.1)
    train(twin, other, loader, k=7, clip=0.1)
    train(twin, other, loader, k=1, clip=0.1)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_short_last_window_is_caught_when_it_comes(loader):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(checks.AccumulationFailure) as failure, checks.loop(model, optimizer, mse) as check:
        train(model, optimizer, check.batches(loader), k=3)
    assert check.windows == 3
    assert failure.value.diagnosis.cause == "short window"
    assert failure.value.diagnosis.coefficients == pytest.approx((1 / 3,), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [({"divide": 1}, "not divided"), ({"zero": False}, "missing zero_grad"), ({"divide": 9}, "divided twice")],
)
def test_what_is_wrong_is_named_from_inside_the_loop(loader, arguments, cause):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(checks.AccumulationFailure) as failure, checks.loop(model, optimizer, mse) as check:
        train(model, optimizer, check.batches(loader), k=3, **arguments)
    assert failure.value.diagnosis.cause == cause


def test_a_loop_that_never_steps_is_no_success(loader):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run():
        with checks.loop(model, optimizer, mse) as check:
            for b in check.batches(loader):
                mse(model, b).backward()

    with pytest.raises(checks.AccumulationFailure, match="No window"):
        run()


def test_dropout_is_refused_with_the_reason(loader):
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidArgumentError, match="dropout"), checks.loop(model, optimizer, mse) as check:
        train(model, optimizer, check.batches(loader), k=1)


def test_a_grad_scaler_and_clipping_pass(loader):
    model = nn.Linear(3, 2)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=4096.0)
    with checks.loop(model, optimizer, mse) as check:
        for b in check.batches(loader):
            scaler.scale(mse(model, b)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert check.windows == 7


def test_batches_that_cannot_be_joined_ask_for_join():
    batches = [(torch.randn(2, 5), torch.randn(2, 5)), (torch.randn(2, 3), torch.randn(2, 3))]
    model = nn.Linear(1, 1)

    def loss(model, batch):
        return F.mse_loss(model(batch[0].unsqueeze(-1)).squeeze(-1), batch[1], reduction="sum") / len(batch[0])

    def padded(batches):
        return tuple(torch.cat([F.pad(b[i], (0, 5 - b[i].shape[1])) for b in batches]) for i in range(2))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def run(**arguments):
        with checks.loop(model, optimizer, loss, **arguments) as check:
            for b in check.batches(batches):
                (loss(model, b) / 2).backward()
            optimizer.step()

    with pytest.raises(InvalidArgumentError, match="join="):
        run()
    optimizer.zero_grad()
    nn.init.zeros_(model.bias)
    model.bias.requires_grad_(False)
    run(join=padded)
