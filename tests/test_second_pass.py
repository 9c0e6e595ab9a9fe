"""What only running something again can give sample by sample: right, as near as can be, and refused where it would not be."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.rules.packed import PackedRecomputation

N = 5


class Scaled(torch.autograd.Function):
    """An operator that nobody described."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return (x * scale).sin()

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        inner = grad * (x * scale).cos()
        return inner * scale, (inner * x).sum_to_size(scale.shape)


class Two(torch.autograd.Function):
    """The same with two outputs, which no operator may have that is run again."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale, x + scale

    @staticmethod
    def backward(ctx, first, second):
        x, scale = ctx.saved_tensors
        return first * scale + second, (first * x + second).sum_to_size(scale.shape)


class Gate(nn.Module):
    """A raw parameter beside a layer, so that the module cannot be recomputed alone."""

    def __init__(self, two=False, dropout=0.0):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4) + 0.5)
        self.inner = nn.Linear(4, 4)
        self.two, self.dropout = two, dropout

    def forward(self, x):
        x = F.dropout(self.inner(x), self.dropout)
        return sum(Two.apply(x, self.scale)) if self.two else Scaled.apply(x, self.scale)


class Model(nn.Module):
    def __init__(self, again=False, centred=False, **settings):
        super().__init__()
        self.enter, self.gate, self.head = nn.Linear(3, 4), Gate(**settings), nn.Linear(4, 2)
        self.again, self.centred = again, centred

    def forward(self, x):
        x = self.enter(x).tanh()
        x = checkpoint(self.gate, x, use_reentrant=False) if self.again else self.gate(x)
        return self.head(x - x.mean(0) if self.centred else x)


def batch():
    torch.manual_seed(3)
    return torch.randn(N, 3, dtype=torch.float64)


def losses(model):
    torch.manual_seed(4)
    return (model(batch()) + 0.3).sin().sum(1)


def made(**settings):
    torch.manual_seed(1)
    return Model(**settings).double()


def watched(model, windows=1, **watch):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, **{"second_pass": True, **watch}) as scope:
        for _ in range(windows):
            losses(model).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return scope.last


def norms(model, parameter):
    return torch.stack([torch.autograd.grad(one, parameter, retain_graph=True)[0].norm() for one in losses(model)])


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize(
    ("settings", "rule"),
    [({}, "Scaled"), ({"dropout": 0.4}, "Scaled"), ({"two": True}, "recomputed gate"), ({"again": True}, "Scaled")],
    ids=["operator", "operator behind dropout", "module", "operator in a checkpoint"],
)
def test_what_is_run_again_gives_every_samples_gradient(settings, rule, windows):
    found = watched(made(**settings), windows)
    model = made(**settings)
    assert found.coverage["gate.scale"].status == "second pass", found.coverage["gate.scale"]
    assert found.coverage["gate.scale"].rule == rule
    torch.testing.assert_close(found.parameters["gate.scale"].sample_norms, norms(model, model.gate.scale))
    others = {one.status for name, one in found.coverage.items() if name != "gate.scale"}
    assert others == {"exact"}


def test_without_the_option_a_custom_backward_runs_once_and_the_reason_says_what_to_do():
    """It may free or overwrite what it saved, so that a second run would end or change the training."""
    report = watched(made(), second_pass=False)
    one = report.coverage["gate.scale"]
    assert one.status == "not measured"
    assert "ScaledBackward" in one.reason
    assert any("second_pass=True" in warning for warning in report.warnings)


def test_a_module_that_draws_random_numbers_is_not_recomputed():
    one = watched(made(two=True, dropout=0.4), 2).coverage["gate.scale"]
    assert one.status == "estimated"
    assert "random numbers" in one.reason


@pytest.mark.parametrize("two", [False, True], ids=["operator", "module"])
def test_samples_that_interact_have_no_figures(two):
    found = watched(made(centred=True, two=two), 3)
    assert found.coverage["gate.scale"].status in ("not measured", "mismatch")
    assert "gate.scale" not in found.parameters


def test_a_checkpointed_module_is_recomputed():
    settings = {"two": True, "again": True}
    found, model = watched(made(**settings), 2), made(**settings)
    assert found.coverage["gate.scale"].status == "second pass", found.coverage["gate.scale"]
    torch.testing.assert_close(found.parameters["gate.scale"].sample_norms, norms(model, model.gate.scale))


@pytest.mark.parametrize("settings", [{}, {"two": True}, {"dropout": 0.4}, {"again": True}], ids=str)
def test_training_is_bitwise_the_same(settings):
    def trained(watch):
        model = made(**settings)
        optimizer = torch.optim.Adam(model.parameters())
        scope = gradscope.watch(model, optimizer, second_pass=True) if watch else None
        for _ in range(3):
            losses(model).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if scope is not None:
            scope.close()
        return [p.detach().clone() for p in model.parameters()] + [torch.get_rng_state()]

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))


class Tied(nn.Module):
    """A table that a custom operator reads in two places of one module."""

    def __init__(self):
        super().__init__()
        self.one, self.other = Gate(two=True), Gate(two=True)
        self.other.scale = self.one.scale

    def forward(self, x):
        return self.other(self.one(x))


def test_a_shared_parameter_is_recomputed_where_all_of_its_uses_are():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), Tied(), nn.Linear(4, 2)).double()
    found = watched(model, 2)
    assert found.coverage["1.one.scale"].rule == "recomputed 1"
    torch.testing.assert_close(found.parameters["1.one.scale"].sample_norms, norms(model, model[1].one.scale))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
@pytest.mark.parametrize("ordered", [True, False], ids=["sorted", "unsorted"])
def test_packed_sequences_are_run_again_one_by_one(kind, settings, ordered):
    torch.manual_seed(1)
    module = kind(3, 4, batch_first=True, **settings).double()
    lengths = torch.tensor([4, 3, 3, 1] if ordered else [3, 1, 4, 3])
    x = torch.randn(4, 4, 3, dtype=torch.float64)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=ordered)
    output, state = module(packed)
    states = state if isinstance(state, tuple) else (state,)
    outputs = (output.data, *states)
    grads = [torch.randn_like(one) for one in outputs]
    parameters = dict(module.named_parameters())
    found = PackedRecomputation(
        module, parameters, packed, None, grads, 4, ("cpu", False, torch.bfloat16)
    ).contributions()
    for i in range(4):
        alone = torch.nn.utils.rnn.PackedSequence(output.data, packed.batch_sizes, packed.sorted_indices, None)
        owner = torch.cat([torch.arange(int(k)) for k in alone.batch_sizes])
        owner = owner if packed.sorted_indices is None else packed.sorted_indices[owner]
        only = [grads[0] * (owner == i).unsqueeze(1)]
        only += [grad * (torch.arange(4) == i).reshape(1, 4, 1) for grad in grads[1:]]
        expected = torch.autograd.grad(outputs, list(parameters.values()), only, retain_graph=True)
        for name, value in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][i], value)
