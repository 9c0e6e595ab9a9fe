"""The hooks' capture against the oracle, in one call."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope import checks


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.fixture
def batch():
    return torch.randn(6, 3), torch.randn(6, 2)


class Scale(nn.Module):
    def __init__(self, features=3):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(features) + 0.5)

    def forward(self, x):
        return self.weight * x


class OtherScale(Scale):
    pass


def test_captured_norms_are_the_oracles(batch):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(), nn.LayerNorm(4), nn.Linear(4, 2))
    checks.assert_per_sample(model, mse, batch, every_parameter=True)
    checks.assert_per_sample(model, lambda m, b: mse(m, b) * 1e-7, batch)
    assert not any(m._forward_hooks for m in model.modules())


def test_samples_that_mix_fail_with_the_reason(batch):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(checks.PerSampleFailure, match="BatchNorm in eval mode"):
        checks.assert_per_sample(model, mse, batch)


def test_a_users_right_rule_passes_and_a_wrong_one_is_found():
    gradscope.register_rule(Scale, lambda module, inputs, grad: {"weight": inputs[0] * grad})
    checks.assert_rule(Scale(), torch.randn(5, 3))
    gradscope.register_rule(OtherScale, lambda module, inputs, grad: {"weight": grad})
    with pytest.raises(checks.RuleFailure, match="OtherScale") as failure:
        checks.assert_rule(OtherScale(), torch.randn(5, 3))
    assert failure.value.diagnosis[0].name == "weight"


def test_built_in_rules_pass_assert_rule():
    checks.assert_rule(nn.Conv1d(3, 4, 3, padding=1), torch.randn(5, 3, 9))
    checks.assert_rule(nn.Embedding(7, 3), torch.randint(7, (5, 4)))
