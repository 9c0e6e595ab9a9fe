"""Rules on their own: what they describe, and when they decline."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import gradscope
from gradscope.rules import find_rule
from gradscope.rules.table import _RULES


def report_of(model, *inputs):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        model(*inputs).sin().sum().backward()
        optimizer.step()
        return scope.last


@pytest.mark.parametrize("layer", list(_RULES), ids=lambda layer: layer.__name__)
def test_every_type_in_the_table_is_a_layer_with_parameters_of_its_own(layer):
    assert issubclass(layer, nn.Module)
    assert layer.__init__ is not nn.Module.__init__ or layer.__module__ != "torch.nn"


def test_a_plain_subclass_inherits_the_rule():
    class Same(nn.Linear):
        pass

    rule, reason = find_rule(Same(2, 1))
    assert rule is not None
    assert (rule.name, reason) == ("linear", "")


def test_a_forward_of_ones_own_declines_the_rule_and_says_why():
    class Other(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    module = nn.Linear(2, 1)
    module.forward = lambda x: x.sum(1, keepdim=True)
    assert find_rule(Other(2, 1)) == (None, "Other changes Linear's forward")
    assert find_rule(module) == (None, "Linear changes Linear's forward")


def test_a_computed_weight_declines_the_rule_and_says_why():
    rule, reason = find_rule(parametrizations.weight_norm(nn.Linear(3, 2)))
    assert rule is None
    assert reason
    legacy = nn.Linear(3, 2)
    legacy.weight_g = nn.Parameter(torch.ones(2, 1))
    del legacy._parameters["weight"]
    assert find_rule(legacy) == (None, "weight is computed from other parameters")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(4, elementwise_affine=False), (3, 4)),
        (nn.GroupNorm(2, 4, affine=False), (3, 4, 5)),
        (nn.BatchNorm1d(4, affine=False).eval(), (3, 4)),
        (nn.InstanceNorm1d(4), (3, 4, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_norm_without_parameters_is_passed_over(layer, shape):
    model = nn.Sequential(nn.Conv1d(4, 4, 1) if len(shape) == 3 else nn.Linear(4, 4), layer).double()
    report = report_of(model, torch.randn(*shape, dtype=torch.float64))
    assert {c.status for c in report.coverage.values()} == {"exact"}
    assert len(report.coverage) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_gradient_that_is_zero_by_structure_is_rounding_and_no_mismatch(dtype):
    """A bias before a norm that takes means away; what reaches it is the rounding of its layer's other gradients."""
    torch.manual_seed(0)
    for layers, shape in (
        ([nn.Conv1d(4, 4, 3), nn.InstanceNorm1d(4)], (6, 4, 30)),
        ([nn.Linear(16, 32), nn.LayerNorm(32, elementwise_affine=False), nn.Linear(32, 1)], (6, 7, 16)),
    ):
        model = nn.Sequential(*layers).to(dtype)
        report = report_of(model, torch.randn(*shape, dtype=dtype))
        assert {c.status for c in report.coverage.values()} == {"exact"}


def test_batch_norm_in_training_mode_is_declined_with_what_to_do():
    report = report_of(nn.BatchNorm1d(4).double(), torch.randn(6, 4, dtype=torch.float64))
    for coverage in report.coverage.values():
        assert coverage.status == "not measured"
        assert "GroupNorm" in coverage.reason


def test_an_embedding_bag_that_torch_scales_wrongly_is_never_silently_wrong():
    """torch's CPU backward divides by another row's count: the check sees that the rule and .grad differ."""
    bag = nn.EmbeddingBag(7, 3, mode="sum", scale_grad_by_freq=True).double()
    ids = torch.randint(7, (6, 4))
    report = report_of(bag, ids)
    counts = torch.bincount(ids.flatten(), minlength=7)
    out = bag(ids)
    (grad,) = torch.autograd.grad(out.sin().sum(), out)
    expected = torch.zeros(7, 3, dtype=torch.float64)
    expected.index_add_(0, ids.flatten(), grad.repeat_interleave(4, 0))
    expected /= counts.clamp(min=1).unsqueeze(1)
    right = torch.allclose(bag.weight.grad, expected)
    assert report.coverage["weight"].status == ("exact" if right else "mismatch")


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_an_embedding_bag_ignores_its_padding_row_and_empty_bags(mode):
    bag = nn.EmbeddingBag(7, 3, mode=mode, padding_idx=2).double()
    report = report_of(bag, torch.tensor([2, 1, 1, 3, 2, 2]), torch.tensor([0, 0, 3, 4, 5, 6]))
    assert report.coverage["weight"].status == "exact"
    expected = [0.0, None, None, 0.0, 0.0, 0.0]
    for found, wanted in zip(report.total.sample_norms.tolist(), expected, strict=True):
        assert (found == 0.0) == (wanted == 0.0)


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 3), nn.Conv1d(4, 3, 1), nn.LayerNorm(4)], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_half_of_a_layer_leaves_the_other_exact(layer, frozen):
    layer = layer.double()
    layer.requires_grad_(True)
    getattr(layer, frozen).requires_grad_(False)
    shape = (6, 4, 5) if isinstance(layer, nn.Conv1d) else (6, 4)
    report = report_of(layer, torch.randn(*shape, dtype=torch.float64))
    other = "bias" if frozen == "weight" else "weight"
    assert {name: c.status for name, c in report.coverage.items()} == {frozen: "frozen", other: "exact"}


def test_autocast_is_measured_in_the_precision_that_ran():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(torch.randn(6, 8)).float().square().mean()
        loss.backward()
        optimizer.step()
        assert {c.status for c in scope.last.coverage.values()} == {"exact"}
        assert max(c.error for c in scope.last.coverage.values()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_have_figures(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)
    report = report_of(model, torch.randn(6, 8, dtype=dtype))
    assert {c.status for c in report.coverage.values()} == {"exact"}
    twin = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    twin.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    torch.manual_seed(0)
    nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    expected = report_of(twin, torch.randn(6, 8, dtype=dtype).double())
    assert report.total.trace_cov == pytest.approx(expected.total.trace_cov, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_lost_position_of_one_sample_of_64_is_a_mismatch(dtype):
    """The smallest fault that must be seen, in the weight and in a bias whose gradient is a hundredth of the weight's."""

    class Lossy(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    def loses_one(module, inputs, grad):
        grad = grad.clone()
        grad[17, grad[17].norm(dim=1).argsort()[4]] = 0  # a position of middling size
        return {"weight": torch.einsum("nto,nti->noi", grad, inputs[0]), "bias": grad.sum(1)}

    gradscope.register_rule(Lossy, loses_one)
    torch.manual_seed(0)
    model = nn.Sequential(Lossy(8, 4), nn.LeakyReLU(), nn.Linear(4, 1)).to(dtype)
    report = report_of(model, 30 * torch.randn(64, 8, 8, dtype=dtype))
    assert report.coverage["0.weight"].status == report.coverage["0.bias"].status == "mismatch"
    assert report.coverage["2.weight"].status == "exact"


@pytest.mark.parametrize("moments", [False, True], ids=["norms", "moments"])
def test_a_bias_that_was_registered_before_its_weight_keeps_its_own_figures(moments):
    torch.manual_seed(0)
    layer = nn.Linear(5, 3).double()
    weight = layer._parameters.pop("weight")
    layer.register_parameter("weight", weight)
    assert [name for name, _ in layer.named_parameters()] == ["bias", "weight"]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    x = torch.randn(4, 5, dtype=torch.float64)
    with gradscope.watch(layer, optimizer, moments=moments) as scope:
        for _ in range(3):
            layer(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        report = scope.last
    truth = gradscope.reference.per_sample_gradients(layer, lambda model, rows: model(rows).square().sum(), x)
    for name, each in truth.items():
        found = report.parameters[name]
        torch.testing.assert_close(found.sample_norms, each.flatten(1).norm(dim=1))
        if moments:
            torch.testing.assert_close(found.variance, each.var(0))
