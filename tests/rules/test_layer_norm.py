"""Normalisation layers: factors of positions enter where these are summed, and keep their digits."""

import pytest
import torch
from torch import nn

from gradscope.rules import find_rule

LAYERS = {
    "layer": lambda shape: nn.LayerNorm(shape, eps=0.1),
    "layer, no bias": lambda shape: nn.LayerNorm(shape, bias=False),
    "RMS": lambda shape: nn.RMSNorm(shape, eps=0.1),
    "RMS, eps by dtype": lambda shape: nn.RMSNorm(shape),
}


def truth(layer, x, grad):
    rows = []
    for i in range(len(x)):
        layer.zero_grad()
        layer(x[i : i + 1]).backward(grad[i : i + 1])
        rows.append({name: parameter.grad.clone() for name, parameter in layer.named_parameters()})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("shape", [(5,), (2, 3)])
@pytest.mark.parametrize("lead", [(4,), (4, 6), (4, 1, 3)])
@pytest.mark.parametrize("kind", list(LAYERS))
def test_scale_and_shift_have_the_gradients_of_samples_alone(kind, lead, shape):
    torch.manual_seed(0)
    layer = LAYERS[kind](shape).double()
    x, grad = torch.randn(*lead, *shape).double(), torch.randn(*lead, *shape).double()
    before = x.clone(), grad.clone()
    described = find_rule(layer)[0].describe(layer, (x,), grad)
    for name, expected in truth(layer, x, grad).items():
        torch.testing.assert_close(described[name].dense(), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before[0])
    assert torch.equal(grad, before[1])


@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4])
def test_a_mean_that_is_large_beside_the_deviations_costs_no_more_digits_than_torchs(offset):
    torch.manual_seed(0)
    layer = nn.LayerNorm(64)
    x, grad = torch.randn(3, 8, 64) + offset, torch.randn(3, 8, 64)
    found = find_rule(layer)[0].describe(layer, (x,), grad)["weight"].dense()
    torchs = truth(layer, x, grad)["weight"]
    expected = truth(layer.double(), x.double(), grad.double())["weight"]
    ours, theirs = (float((one - expected).norm() / expected.norm()) for one in (found, torchs))
    assert ours < 2 * theirs + 1e-6
