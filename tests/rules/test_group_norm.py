"""Group norms are described from what the layer has saved, and in full where that would lose digits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradscope
from gradscope.rules import normalization
from gradscope.rules.normalization import describe_group_norm, saved_statistics


def called(shift, dtype, spatial=(5, 3)):
    torch.manual_seed(0)
    layer = nn.GroupNorm(2, 6).to(dtype)
    x = (torch.randn(4, 6, *spatial, dtype=torch.float64) + shift).to(dtype).requires_grad_()
    return layer, x, layer(x)


def in_full(layer, x, grad):
    """``Σ g·x̂`` and ``Σ g`` over all positions, in double precision."""
    groups = x.detach().double().reshape(x.shape[0], layer.num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    normalized = centred / (centred.square().mean(2, keepdim=True) + layer.eps).sqrt()
    products = normalized.reshape(x.shape) * grad.double()
    return products.flatten(2).sum(2), grad.double().flatten(2).sum(2)


@pytest.mark.parametrize("shift", [0.0, 3.0, 100.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
@pytest.mark.parametrize("spatial", [(5, 3), (7,), (1,), (2, 3, 2)])
def test_scale_and_shift_of_each_sample(dtype, tolerance, shift, spatial):
    layer, x, output = called(shift, dtype, spatial)
    grad = torch.randn_like(output)
    described = describe_group_norm(layer, (x.detach(), *saved_statistics(output)), grad)
    for name, expected in zip(("weight", "bias"), in_full(layer, x, grad), strict=True):
        torch.testing.assert_close(described[name].values.double(), expected, rtol=tolerance, atol=tolerance)


def test_what_is_far_from_zero_is_normalised_first(monkeypatch):
    monkeypatch.setattr(normalization, "_in_one_pass", None)
    layer, x, output = called(1e3, torch.float32)
    describe_group_norm(layer, (x.detach(), *saved_statistics(output)), torch.randn_like(output))


def test_an_output_of_another_node_has_saved_nothing():
    _, _, output = called(0.0, torch.float32)
    assert saved_statistics(output.relu()) == ()
    assert saved_statistics(output.detach()) == ()


@pytest.mark.parametrize("affine", [True, False])
def test_watched_layers_are_described_in_one_pass(monkeypatch, affine):
    used, real = [], normalization._in_one_pass
    monkeypatch.setattr(normalization, "_in_one_pass", lambda *args: used.append(1) or real(*args))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.GroupNorm(2, 6, affine=affine), nn.Flatten(), nn.Linear(24, 3)
    ).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum(1).mean().backward()
            optimizer.step()
        parameters = scope.last.parameters
    assert bool(used) == affine
    for i in range(4):
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        grads = torch.autograd.grad(model(x[i : i + 1]).square().sum(), list(named.values()))
        for name, grad in zip(named, grads, strict=True):
            assert float(parameters[name].sample_norms[i]) == pytest.approx(float(grad.norm()), rel=1e-9)
