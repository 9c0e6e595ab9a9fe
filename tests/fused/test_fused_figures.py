"""``fused=True`` on every problem of the zoo: its figures and its gradients, wherever a layer can be fused."""

import pytest
import torch
from zoo import PROBLEMS, contributions, figures, measure
from zoo.measured import train_window
from zoo.pending import cases

import gradscope
from gradscope.capture import fused as capture_fused
from gradscope.contributions import Outer, OuterBias, Probe, fused_convolution, fused_sums
from gradscope.contributions.fused import fused
from gradscope.contributions.fused_convolution import sums_of_convolutions
from gradscope.contributions.fused_sums import sums_of_products
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.workspace import Workspace

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
EVERY = pytest.mark.parametrize("problem", cases(PROBLEMS), ids=str)
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))
FIGURES = ("grad_norm", "sample_norms", "trace_cov", "grad_sq", "variance")


@pytest.fixture(autouse=True)
def _wherever_possible(monkeypatch):
    """The problems are small: no layer of theirs would pay for it."""
    monkeypatch.setattr(capture_fused, "pays", lambda *args, **options: True)


def assert_close(found, wanted, dtype, where):
    found, wanted = (torch.as_tensor(value, dtype=torch.float64).flatten() for value in (found, wanted))
    scale = wanted.norm() if bool(wanted.norm() > 0) else 1.0
    assert float((found - wanted).norm() / scale) <= TOLERANCE[dtype], where


@EVERY
@DTYPES
def test_figures_agree_with_the_reference(problem, dtype):
    found = measure(problem, dtype, windows=2, watch={"moments": True, "fused": True}).parameters
    for name, h in contributions(problem).items():
        if name in problem.estimated:
            continue
        expected = figures([h])
        for figure in FIGURES:
            value = getattr(found[name], figure)
            if figure != "variance" or value is not None:
                assert_close(value, getattr(expected, figure), dtype, f"{name}: {figure}")


@EVERY
def test_gradients_are_autograds_up_to_rounding(problem):
    grads = []
    for options in (None, {"fused": True}):
        model = problem.model(torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scope = gradscope.watch(model, optimizer, batch_dim=problem.batch_dim, **options) if options else None
        for _ in range(2):
            optimizer.zero_grad()
            torch.manual_seed(1)
            train_window(problem, model, optimizer)
        grads.append({name: p.grad for name, p in model.named_parameters()})
        if scope is not None:
            scope.close()
    whole = sum(float(g.to_dense().abs().square().sum()) for g in grads[0].values() if g is not None) ** 0.5
    for name, wanted in grads[0].items():
        found = grads[1][name]
        assert (found is None) == (wanted is None), name
        if wanted is not None:
            off = float((found.to_dense() - wanted.to_dense()).abs().square().sum()) ** 0.5
            assert off <= 1e-12 * whole, name


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("small", [0, 1 << 30], ids=["one by one", "in chunks"])
@pytest.mark.parametrize(("a", "b"), [(7, 3), (3, 7)])
def test_sums_of_products_are_those_of_the_samples(monkeypatch, moments, small, a, b):
    monkeypatch.setattr(fused_sums, "SMALL", small)
    monkeypatch.setattr(Workspace, "room", lambda self, each, like, least=1: max(least, 8 // each))
    first, second = torch.randn(5, 4, a).double(), torch.randn(5, 4, b).double()
    for alone in (False, True):
        found = sums_of_products(first, second, Workspace(), moments=moments, alone=alone)
        check_sums(found, first.mT @ second, moments, None)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("d", "p"), [(7, 3), (3, 7)])
def test_a_fused_weight_finds_its_probes_and_its_biass_sums_in_the_factors(monkeypatch, k, with_bias, d, p):
    monkeypatch.setattr(fused_sums, "SMALL", 0)
    outer = Outer(torch.randn(5, 1, 4, d).double(), torch.randn(5, 1, 4, p).double(), torch.Size((p, d)))
    sums, in_full = outer.grads[:, 0].sum(1), outer.dense()
    if with_bias:
        outer.bias = OuterBias(outer.grads[:, 0])
    probe = Probe.draw(in_full[0], torch.Generator().manual_seed(0), k=k)
    weight = fused(outer)
    found = weight.figures(probe, moments=True)
    torch.testing.assert_close(found.probes, torch.stack([probe.of(one) for one in in_full]), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(weight.summed, in_full.sum(0), rtol=1e-12, atol=1e-12)
    if with_bias:
        torch.testing.assert_close(outer.bias.values, sums, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("least", [0, 1 << 30], ids=["grouped", "patches"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_sums_of_convolutions_are_those_of_the_samples(monkeypatch, least, stride, dilation):
    monkeypatch.setattr(fused_convolution, "POSITIONS", least)
    monkeypatch.setattr(fused_convolution, "CHANNELS", 0)
    monkeypatch.setattr(fused_convolution, "MOST", 2)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(5, 3, 9, 9, dtype=torch.float64)
    grads = torch.randn_like(torch.conv2d(inputs, weight, stride=stride, dilation=dilation))
    geometry = Geometry((3, 3), (stride, stride), (dilation, dilation), 1)
    truth = []
    for i in range(5):
        output = torch.conv2d(inputs[i : i + 1], weight, stride=stride, dilation=dilation)
        truth.append(torch.autograd.grad(output, weight, grads[i : i + 1])[0])
    reached = geometry.reached(inputs, tuple(grads.shape[2:]))
    found = sums_of_convolutions(reached, grads, weight.shape, geometry, Workspace(), moments=True, probe=None)
    check_sums(found, torch.stack(truth), True, None)


def check_sums(found, samples, moments, probes):
    torch.testing.assert_close(found.total, samples.sum(0))
    torch.testing.assert_close(found.squares, samples.flatten(1).square().sum(1))
    if moments:
        torch.testing.assert_close(found.second_moment, samples.square().sum(0))
    else:
        assert found.second_moment is None
    if probes is not None:
        torch.testing.assert_close(found.probes, probes)


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (1, 3), (2, (0, 2))], ids=str)
def test_samples_as_groups_of_a_padded_convolution_have_their_own_figures(moments, stride, padding, compiled):
    torch.manual_seed(0)
    size = 26 if stride == 1 else 50
    layer = torch.nn.Conv2d(fused_convolution.CHANNELS, 5, 3, stride=stride, padding=padding, dtype=torch.float64)
    x = torch.randn(4, fused_convolution.CHANNELS, size, size, dtype=torch.float64)
    weights = torch.randn_like(layer(x))
    assert weights[0, 0].numel() >= fused_convolution.POSITIONS
    each = torch.stack(
        [torch.autograd.grad((layer(x[i : i + 1]) * weights[i]).sum(), layer.weight)[0] for i in range(4)]
    )
    with gradscope.watch(layer, torch.optim.SGD(layer.parameters(), lr=0.0), moments=moments, fused=True) as scope:
        for _ in range(3):
            layer.zero_grad()
            (layer(x) * weights).sum().backward()
            report = scope.step()
        rule = "convolution (fused kernel)" if compiled else "convolution (fused)"
        assert report.coverage["weight"].rule == rule, report.coverage["weight"]
        torch.testing.assert_close(layer.weight.grad, each.sum(0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(report.parameters["weight"].sample_norms / 4, each.flatten(1).norm(dim=1))
        if moments:
            torch.testing.assert_close(report.parameters["weight"].variance, (4 * each).var(0))
