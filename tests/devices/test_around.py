"""What stands around a window, with a model on another device: default devices, assertions, state, precision, several devices."""

import copy

import pytest
import torch
from conftest import IS_SIMULATED
from elsewhere import moved
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope import checks
from gradscope.errors import InvalidArgumentError
from gradscope.reference import per_sample_gradients
from gradscope.wide import knows_float64


class Net(nn.Module):
    """A table, a convolution over positions, normalisation, dropout, a tied head."""

    def __init__(self, drop=0.0):
        super().__init__()
        self.table, self.conv = nn.Embedding(11, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.norm, self.drop, self.head = nn.LayerNorm(8), nn.Dropout(drop), nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.table(ids)
        return self.head(self.drop(self.norm(x + self.conv(x.mT).mT)))


def loss_of(model, ids):
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def net(device, dtype=torch.float64, drop=0.0):
    torch.manual_seed(5)
    return Net(drop).to(dtype).to(device)


def ids(device, n=6, seed=2):
    return torch.randint(11, (n, 7), generator=torch.Generator().manual_seed(seed)).to(device)


def reports(device, dtype=torch.float64, windows=6, model=None, **options):
    model = model or net(device, dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gradscope.watch(model, optimizer, **options) as scope:
        for k in range(windows):
            loss_of(model, ids(device, seed=k)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return scope.report()


def assert_like(found, host, tolerance=1e-9):
    assert found.parameters.keys() == host.parameters.keys()
    for name, stats in found.parameters.items():
        other = host.parameters[name]
        expected = pytest.approx((other.grad_norm, other.trace_cov), rel=tolerance, nan_ok=True)
        assert (stats.grad_norm, stats.trace_cov) == expected
    assert found.total.noise_scale == pytest.approx(host.total.noise_scale, rel=tolerance, nan_ok=True)


@pytest.mark.parametrize("options", [{}, {"moments": True}, {"fused": True}, {"every": 2}, {"capture": False}], ids=str)
def test_with_the_device_as_default(options, device, dtype):
    host = reports("cpu", dtype, **options)
    torch.set_default_device(device)
    try:
        found = reports(device, dtype, **options)
        text = str(found)
    finally:
        torch.set_default_device(None)
    assert "gradscope failed" not in text
    assert_like(found, host, 1e-9 if dtype is torch.float64 else 2e-2)


def test_the_noise_scale_as_adam_sees_it(device, dtype):
    host, found = (reports(place, dtype, moments=True).total for place in ("cpu", device))
    expected = host.preconditioned_noise_scale
    assert found.preconditioned_noise_scale == pytest.approx(expected, rel=1e-9 if dtype is torch.float64 else 2e-2)


def test_the_reference_on_the_device(device, dtype):
    found = per_sample_gradients(net(device, dtype), loss_of, ids(device))
    host = per_sample_gradients(net("cpu", dtype), loss_of, ids("cpu"))
    for name, gradients in host.items():
        torch.testing.assert_close(found[name].cpu().double(), gradients.double(), rtol=1e-5, atol=1e-6)


def halves(model, batches):
    for batch in batches:
        (loss_of(model, batch) * len(batch) / sum(map(len, batches))).backward()


def forgotten(model, batches):
    for batch in batches:
        loss_of(model, batch).backward()


@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_assertions_hold_for_what_is_right(drop, device, dtype):
    model, batch = net(device, dtype, drop), ids(device, 8)
    if not drop:
        checks.assert_accumulates(halves, model, loss_of, batch)
        checks.assert_unbiased(model, loss_of, batch)
    checks.assert_no_leakage(model, (batch[:, :-1],))
    checks.assert_per_sample(model, loss_of, batch)
    checks.assert_finite(model, loss_of, batch)
    checks.assert_every_parameter_learns(model, loss_of, batch)
    if knows_float64(device):
        checks.assert_gradients(model, loss_of, batch)
    else:
        with pytest.raises(InvalidArgumentError, match=r"need float64, and \w+(:0)? knows none. Move the model"):
            checks.assert_gradients(model, loss_of, batch)


def test_assertions_fail_for_what_is_wrong(device, dtype):
    class Mixing(Net):
        def forward(self, ids):
            found = super().forward(ids)
            return found - found.mean(0, keepdim=True)

    torch.manual_seed(5)
    model, batch = Mixing().to(dtype).to(device), ids(device, 8)
    with pytest.raises(checks.LeakageFailure):
        checks.assert_no_leakage(model, (batch[:, :-1],))
    with pytest.raises(checks.PerSampleFailure):
        checks.assert_per_sample(model, loss_of, batch)
    with pytest.raises(checks.AccumulationFailure):
        checks.assert_accumulates(forgotten, net(device, dtype), loss_of, batch)


def test_state_goes_from_one_device_to_another(device, dtype):
    states = []
    for place, then in (("cpu", device), (device, "cpu")):
        model = net(place, dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with gradscope.watch(model, optimizer) as scope:
            for k in range(3):
                loss_of(model, ids(place, seed=k)).backward()
                optimizer.step()
                optimizer.zero_grad()
            state = copy.deepcopy(scope.state_dict())
        model = net(then, dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with gradscope.watch(model, optimizer) as scope:
            scope.load_state_dict(state)
            for k in range(3, 6):
                loss_of(model, ids(then, seed=k)).backward()
                optimizer.step()
                optimizer.zero_grad()
            states.append(scope.report())
    assert states[0].windows == states[1].windows == 6
    assert_like(*states, tolerance=1e-9 if dtype is torch.float64 else 2e-2)


class Split(nn.Module):
    """Its table on the host, the rest on the device."""

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device)
        self.table, self.body = nn.Embedding(11, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 11))
        self.double()
        self.body.to(device)

    def forward(self, ids):
        return self.body(self.table(ids).to(self.device))


def test_a_model_on_two_devices(device):
    found = []
    for place in ("cpu", device):
        torch.manual_seed(3)
        model = Split(place)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with gradscope.watch(model, optimizer, moments=True) as scope:
            for k in range(6):
                output = model(ids("cpu", seed=k)[:, :-1])
                F.cross_entropy(output.flatten(0, 1), ids(place, seed=k)[:, 1:].flatten()).backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append(scope.report())
    assert {one.status for one in found[1].coverage.values()} == {"exact"}
    assert_like(*found)


@pytest.mark.skipif(IS_SIMULATED, reason="torch swaps its tensors, and all hooks are lost on the way")
def test_a_model_that_moves_between_windows(device):
    model = net("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        for k in range(8):
            place = device if k >= 4 else "cpu"
            if k == 4:
                model.to(device)
            loss_of(model, ids(place, seed=k)).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert scope.last.window_samples == 6
        report = scope.report()
    for name, gradients in per_sample_gradients(net("cpu"), loss_of, ids("cpu", seed=7)).items():
        torch.testing.assert_close(
            scope.last.parameters[name].sample_norms, gradients.flatten(1).norm(dim=1), rtol=1e-9, atol=1e-12
        )
    assert {one.status for one in report.coverage.values()} == {"exact"}


def test_autocast(device):
    model = net(device, torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(3):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = loss_of(model, ids(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        report = scope.last
    for name, gradients in per_sample_gradients(net("cpu"), loss_of, ids("cpu")).items():
        expected = gradients.flatten(1).norm(dim=1)
        torch.testing.assert_close(report.parameters[name].sample_norms, expected, rtol=0.05, atol=1e-3)
        assert report.coverage[name].status == "exact"


def test_losses_that_are_scaled(device):
    model = net(device, torch.float32)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.0), torch.amp.GradScaler(device.type, init_scale=512.0)
    with gradscope.watch(model, optimizer, scaler=scaler) as scope:
        for _ in range(3):
            scaler.scale(loss_of(model, ids(device))).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        report = scope.last
    for name, gradients in per_sample_gradients(net("cpu"), loss_of, ids("cpu")).items():
        expected = gradients.flatten(1).norm(dim=1)
        torch.testing.assert_close(report.parameters[name].sample_norms, expected, rtol=1e-3, atol=1e-5)


def test_weights_and_names_of_samples_may_lie_anywhere(device, dtype):
    found = []
    for place in ("cpu", device):
        model = net(place, dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with gradscope.watch(model, optimizer) as scope:
            for k in range(6):
                batch = ids(place, seed=k)
                weights = torch.arange(1.0, 7.0, device=place)
                scope.annotate(weights=weights, ids=torch.arange(6, device=place))
                token = F.cross_entropy(model(batch[:, :-1]).mT, batch[:, 1:], reduction="none").mean(1)
                (weights.to(token.dtype) * token).sum().div(weights.sum()).backward()
                optimizer.step()
                optimizer.zero_grad()
            found.append(scope.report())
    assert_like(*found, tolerance=1e-9 if dtype is torch.float64 else 2e-2)


def test_structures_are_moved_as_they_are(device):
    assert [leaf.device.type for leaf in moved({"a": [torch.ones(1)], "b": (torch.ones(2),)}, device)["a"]] == [
        device.type
    ]


class Both(torch.autograd.Function):
    """A node with two outputs: nothing but its whole module can be run again."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale, x + scale

    @staticmethod
    def backward(ctx, first, second):
        x, scale = ctx.saved_tensors
        return first * scale + second, (first * x + second).sum_to_size(scale.shape)


class Drawn(nn.Module):
    """No rule is known for it, and running it again would draw again."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return sum(Both.apply(F.dropout(x, 0.4), self.scale))


def test_a_module_that_draws_on_its_device_is_not_run_again(device):
    ways = []
    for place in ("cpu", device):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), Drawn(), nn.Linear(8, 2)).double().to(place)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with gradscope.watch(model, optimizer, second_pass=True) as scope:
            for _ in range(3):
                model(torch.ones(5, 4, dtype=torch.float64).cumsum(0).to(place)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            ways.append({name: (one.status, one.reason) for name, one in scope.last.coverage.items()})
    assert ways[0] == ways[1]
    assert "random numbers" in ways[0]["1.scale"][1]
