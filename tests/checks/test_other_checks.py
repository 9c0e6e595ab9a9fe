"""Per sample, leakage, finite differences, unbiasedness, finiteness, and who learns."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope import checks
from gradscope.errors import InvalidArgumentError


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def batch():
    return torch.randn(7, 3), torch.randn(7, 2)


class Residual(nn.Module):
    def __init__(self, mix):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.mix = mix

    def forward(self, x):
        h = self.inner(x)
        return h - h.mean(0) if self.mix else h


class TestLeakage:
    def test_a_model_of_independent_samples_passes(self, model, batch):
        checks.assert_no_leakage(model, batch[0])
        checks.assert_no_leakage(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), torch.randn(5, 6, 4))

    def test_batchnorm_is_named_in_training_and_passes_in_eval(self, batch):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        before = model[1].running_mean.clone()
        with pytest.raises(checks.LeakageFailure, match="'1' \\(BatchNorm1d\\), in training mode") as failure:
            checks.assert_no_leakage(model, batch[0])
        assert failure.value.diagnosis.module == "1"
        assert torch.equal(before, model[1].running_mean)
        checks.assert_no_leakage(model.eval(), batch[0])

    def test_the_module_whose_own_forward_mixes_is_named_not_its_children(self, batch):
        model = nn.Sequential(nn.Linear(3, 3), Residual(mix=True), nn.Linear(3, 2))
        with pytest.raises(checks.LeakageFailure) as failure:
            checks.assert_no_leakage(model, batch[0])
        assert failure.value.diagnosis.module == "1"

    def test_a_swapped_batch_dimension_is_found(self):
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=False)
        with pytest.raises(checks.LeakageFailure, match="self_attn"):
            checks.assert_no_leakage(layer, torch.randn(5, 6, 4))

    def test_dropout_is_no_leak(self, batch):
        checks.assert_no_leakage(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), batch[0])

    def test_an_output_without_rows_is_refused(self, batch):
        with pytest.raises(InvalidArgumentError, match="one row per sample"):
            checks.assert_no_leakage(nn.Sequential(nn.Linear(3, 4), nn.Flatten(0)), batch[0])


class WrongSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x  # the factor 2 is missing


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class TestGradients:
    def test_autograd_is_right_with_kinks_too(self, model, batch):
        checks.assert_gradients(model, mse, batch)
        checks.assert_gradients(nn.Linear(3, 2), lambda m, b: (m(b[0]) - b[1]).abs().mean(), batch)

    def test_every_weight_exactly_at_a_kink_passes(self, batch):
        model = nn.Linear(3, 2, bias=False)
        nn.init.zeros_(model.weight)
        checks.assert_gradients(model, lambda m, b: m.weight.abs().sum() + m(b[0]).relu().sum(), batch)

    @pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
    def test_a_wrong_backward_is_found_and_named_at_every_scale(self, batch, scale):
        model = nn.Sequential(
            nn.Linear(3, 4), Apply(WrongSquare.apply), nn.Linear(4, 2), Apply(Doubled.apply), nn.Linear(2, 2)
        )
        with pytest.raises(checks.GradientFailure, match="function WrongSquare") as failure:
            checks.assert_gradients(model, lambda m, b: scale * mse(m, b), batch)
        assert [w.name for w in failure.value.diagnosis] == ["0.weight", "0.bias"]
        assert failure.value.diagnosis[0].functions == ("WrongSquare",)
        assert failure.value.diagnosis[0].ratio == pytest.approx(0.5, rel=1e-2)

    def test_a_detach_is_found(self, model, batch):
        with pytest.raises(checks.GradientFailure, match="detach"):
            checks.assert_gradients(model, lambda m, b: mse(lambda x: m(x).detach() * m(x), b), batch)

    def test_dropout_is_held_still(self, batch):
        checks.assert_gradients(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), mse, batch)


class TestUnbiased:
    def test_a_mean_loss_is_unbiased_and_its_variance_falls_as_it_should(self, model, batch):
        checks.assert_unbiased(model, mse, batch, sizes=range(1, 8))

    def test_large_data_sets_are_sampled(self, model):
        checks.assert_unbiased(model, mse, (torch.randn(40, 3), torch.randn(40, 2)))

    def test_a_sum_is_biased_by_the_size_ratio(self, model, batch):
        with pytest.raises(checks.BiasFailure) as failure:
            checks.assert_unbiased(model, lambda m, b: mse(m, b) * len(b[0]), batch, sizes=[2])
        assert failure.value.diagnosis.ratio == pytest.approx(2 / 7)

    def test_batchnorm_is_biased(self, batch):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=True), nn.Linear(4, 2))
        model.eval()
        checks.assert_unbiased(model, mse, batch)

    def test_sizes_outside_the_data_are_refused(self, model, batch):
        with pytest.raises(InvalidArgumentError, match="between 1 and N"):
            checks.assert_unbiased(model, mse, batch, sizes=[8])


class TestFinite:
    def test_finite_gradients_pass(self, model, batch):
        checks.assert_finite(model, mse, batch)

    def test_the_sample_and_the_module_are_named(self, model, batch):
        batch[0][5, 1] = float("nan")
        with pytest.raises(checks.NonFiniteFailure, match="samples that alone give it: 5") as failure:
            checks.assert_finite(model, mse, batch)
        assert failure.value.diagnosis.samples == (5,)
        assert failure.value.diagnosis.module == "0"

    def test_an_infinite_backward_of_a_finite_forward_is_told(self, batch):
        model = nn.Linear(3, 2, bias=False)
        batch[0][2] = 0
        with pytest.raises(checks.NonFiniteFailure, match="The forward is finite") as failure:
            checks.assert_finite(model, lambda m, b: m(b[0]).norm(dim=1).sqrt().mean(), batch)
        assert failure.value.diagnosis.samples == (2,)


class TestLearning:
    def test_a_connected_model_passes(self, model, batch):
        checks.assert_every_parameter_learns(model, mse, batch)

    def test_unused_detached_and_dead_are_told_apart(self, batch):
        model = nn.ModuleDict(
            {"used": nn.Linear(3, 2), "dead": nn.Linear(2, 2), "cut": nn.Linear(3, 2), "off": nn.Linear(1, 1)}
        )

        def loss(m, b):
            h = m["used"](b[0])
            return (h + 0 * m["dead"](h) + m["cut"](b[0]).detach()).square().mean()

        with pytest.raises(checks.IdleParameterFailure) as failure:
            checks.assert_every_parameter_learns(model, loss, batch)
        found = {p.name: (p.reason, p.called) for p in failure.value.diagnosis}
        assert found["dead.weight"] == ("always zero", True)
        assert found["cut.weight"] == ("no gradient", True)
        assert found["off.bias"] == ("no gradient", False)
        checks.assert_every_parameter_learns(model, loss, batch, ignore=["dead", "cut", "off"])

    def test_an_unknown_name_to_ignore_is_refused(self, model, batch):
        with pytest.raises(InvalidArgumentError, match="no parameter"):
            checks.assert_every_parameter_learns(model, mse, batch, ignore=["hed"])
