"""Recurrent layers: one pass back through time gives what one backward per sample gives, and what is unusual is declined."""

import gc
import itertools
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import _pytree as pytree

import gradscope
from gradscope.capture.model import find_parameters, find_plans
from gradscope.capture.recurrent_call import RecurrentCall
from gradscope.contributions import Outer
from gradscope.contributions.choice import Forced
from gradscope.contributions.workspace import Workspace
from gradscope.rules.recurrent import find_form
from gradscope.rules.recurrent.form import _KINDS

N, T, D, H, P = 4, 5, 3, 6, 2
KINDS = {
    "LSTM": nn.LSTM, "LSTM, projected": lambda *a, **k: nn.LSTM(*a, proj_size=P, **k), "GRU": nn.GRU, "RNN": nn.RNN,
    "RNN, ReLU": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}  # fmt: skip
CELLS = {
    "LSTMCell": nn.LSTMCell, "GRUCell": nn.GRUCell, "RNNCell": nn.RNNCell,
    "RNNCell, ReLU": lambda *a, **k: nn.RNNCell(*a, nonlinearity="relu", **k),
}  # fmt: skip


def tensors(output):
    return [one for one in pytree.tree_leaves(output) if isinstance(one, torch.Tensor) and one.is_floating_point()]


def described(module, args, grads, outputs):
    plan = find_plans(module, find_parameters(module))[0]
    call = RecurrentCall.of(plan, args, outputs, N)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return call.contributions(weights, args, grads, list(weights))


def only(grad, which, i, module, packed):
    """The part of an output's gradient that is sample i's."""
    if packed is not None and which == 0:
        rows = torch.cat([torch.arange(int(size)) for size in packed.batch_sizes])
        rows = rows if packed.sorted_indices is None else packed.sorted_indices[rows]
        return grad * (rows == i).unsqueeze(1)
    dim = 0 if grad.dim() == 2 or (which == 0 and module.batch_first) else 1
    kept = torch.zeros_like(grad)
    kept.select(dim, i).copy_(grad.select(dim, i))
    return kept


def one_by_one(module, args, grads, outputs):
    """What each sample adds, by one backward for each."""
    parameters = dict(module.named_parameters())
    packed = args[0] if isinstance(args[0], PackedSequence) else None
    present = [k for k, grad in enumerate(grads) if grad is not None]
    rows = [
        torch.autograd.grad(
            [outputs[k] for k in present], list(parameters.values()), [only(grads[k], k, i, module, packed) for k in present],
            retain_graph=True, allow_unused=True,
        )
        for i in range(N)
    ]  # fmt: skip
    shares = zip(parameters, parameters.values(), zip(*rows, strict=True), strict=True)
    return {
        name: torch.stack([torch.zeros_like(own) if row is None else row for row in found]) for name, own, found in shares
    }  # fmt: skip


def compare(module, args, present=None):
    outputs = tensors(module(*args))
    grads = [torch.randn_like(one) if present is None or k in present else None for k, one in enumerate(outputs)]
    found, expected = described(module, args, grads, outputs), one_by_one(module, args, grads, outputs)
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name].dense(), values, rtol=1e-9, atol=1e-11)
        squares = values.reshape(N, -1).square().sum(1)
        for algorithm in ("Gram", "products") if isinstance(found[name], Outer) else ("none",):
            figures = found[name].figures(workspace=Workspace(Forced(algorithm)))
            torch.testing.assert_close(figures.squares, squares, rtol=1e-9, atol=1e-11)


def states(kind, layers, both):
    places = layers * (2 if both else 1)
    hidden = torch.randn(places, N, P if "projected" in kind else H, dtype=torch.float64)
    return (hidden, torch.randn(places, N, H, dtype=torch.float64)) if "LSTM" in kind else hidden


def sequences(batch_first):
    x = torch.randn(N, T, D, dtype=torch.float64)
    return x if batch_first else x.transpose(0, 1)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("layers", "both", "batch_first"), list(itertools.product((1, 2), (False, True), (False, True)))
)
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_sequence_gives_what_one_backward_per_sample_gives(kind, layers, both, batch_first, bias, given):
    module = KINDS[kind](D, H, layers, bias=bias, bidirectional=both, batch_first=batch_first).double()
    compare(module, (sequences(batch_first), *((states(kind, layers, both),) if given else ())))


@pytest.mark.parametrize("present", [{0}, {1}, {2}, {1, 2}], ids=str)
@pytest.mark.parametrize("kind", list(KINDS))
def test_whichever_outputs_a_gradient_comes_back_for(kind, present):
    if "LSTM" not in kind and 2 in present:
        present = {0, 1}
    module = KINDS[kind](D, H, 2, bidirectional=True, batch_first=True).double()
    compare(module, (sequences(True), states(kind, 2, True)), present)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [3, 1, 4, 3], [2, 2, 2, 2]], ids=str)
@pytest.mark.parametrize(("layers", "both"), list(itertools.product((1, 2), (False, True))))
@pytest.mark.parametrize("kind", list(KINDS))
def test_packed_sequences_give_what_one_backward_per_sample_gives(kind, layers, both, lengths, given):
    module = KINDS[kind](D, H, layers, bidirectional=both, batch_first=True).double()
    ordered = lengths == sorted(lengths, reverse=True)
    packed = pack_padded_sequence(sequences(True), torch.tensor(lengths), batch_first=True, enforce_sorted=ordered)
    compare(module, (packed, *((states(kind, layers, both),) if given else ())))


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kind", list(CELLS))
def test_a_cell_gives_what_one_backward_per_sample_gives(kind, bias, given):
    module = CELLS[kind](D, H, bias=bias).double()
    state = tuple(torch.randn(2, N, H, dtype=torch.float64)) if "LSTM" in kind else torch.randn(N, H).double()
    args = (torch.randn(N, D, dtype=torch.float64), *((state,) if given else ()))
    compare(module, args)
    if "LSTM" in kind:
        compare(module, args, {0})
        compare(module, args, {1})


class Net(nn.Module):
    """A recurrent module and what is done with its output."""

    def __init__(self, inner, then=lambda output: output):
        super().__init__()
        self.inner, self.then = inner, then

    def forward(self, *args, **kwargs):
        return self.then(self.inner(*args, **kwargs)[0])


def watched(model, *args, steps=2, **kwargs):
    """The last window's report, and the norms that one backward per sample gives."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(steps):
            optimizer.zero_grad()
            model(*args, **kwargs).sin().sum().backward()
            optimizer.step()
        report = scope.last
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = [
        torch.autograd.grad(model(*args, **kwargs)[i].sin().sum(), list(named.values()), allow_unused=True)
        for i in range(N)
    ]
    norms = {name: torch.stack([row[k].norm() for row in rows]).double() * N for k, name in enumerate(named)}
    return report, norms


def assert_described(report, norms, rule, tolerance=1e-9):
    for name, expected in norms.items():
        assert report.coverage[name].status == "exact", report.coverage[name]
        assert report.coverage[name].rule.partition(" (")[0].startswith(rule), report.coverage[name]
        found = report.parameters[name].sample_norms
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


class Doubled(nn.GRU):
    def forward(self, x):
        output, last = super().forward(x)
        return output * 2, last


def parametrized():
    return parametrizations.weight_norm(nn.GRU(D, H, batch_first=True).double(), "weight_hh_l0")


def swapped():
    module = nn.GRU(D, H, batch_first=True).double()
    module._flat_weights = [weight.detach().clone() for weight in module._flat_weights]
    return module


@pytest.mark.parametrize(
    "build", [lambda: nn.LSTM(D, H, 2, dropout=0.5), lambda: Doubled(D, H), parametrized, swapped, lambda: nn.Linear(D, H)],
    ids=["dropout", "own forward", "computed weight", "other weights", "no recurrent layer"],
)  # fmt: skip
def test_what_is_unusual_has_no_closed_form(build):
    assert find_form(build()) is None


def test_dropout_that_does_nothing_is_usual():
    assert find_form(nn.LSTM(D, H, 2, dropout=0.5).eval()) is not None
    assert find_form(nn.LSTM(D, H, dropout=0.0)) is not None


def call_of(module, x, samples=N):
    plan = find_plans(module, find_parameters(module))[0]
    return RecurrentCall.of(plan, (x,), tensors(module(x)), samples)


@pytest.mark.parametrize(
    ("shape", "samples"), [((T, D), T), ((N, T, D), T), ((N, T, D), N + T)],
    ids=["without a batch", "along time", "nowhere"],
)  # fmt: skip
def test_samples_that_lie_elsewhere_are_declined(shape, samples):
    assert call_of(nn.LSTM(D, H, batch_first=True), torch.randn(shape), samples) is None


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", list(KINDS))
def test_half_precision_is_declined_but_where_one_operator_keeps_more_digits_inside(kind, half):
    module, x = KINDS[kind](D, H, batch_first=True).to(half), torch.randn(N, T, D).to(half)
    assert (call_of(module, x) is not None) == (kind == "LSTM" and half is torch.bfloat16)


@pytest.mark.parametrize("kind", list(KINDS))
def test_autocast_is_declined_likewise(kind):
    module, x = KINDS[kind](D, H, batch_first=True), torch.randn(N, T, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (call_of(module, x) is not None) == (kind == "LSTM")
    assert call_of(module, x) is not None


def in_bfloat16(model, x, autocast):
    """Eight windows' last report, and the norms that one backward per sample gives, in bfloat16."""
    model, x = (model, x) if autocast else (model.to(torch.bfloat16), x.to(torch.bfloat16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(8):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                output = model(x)
            optimizer.zero_grad()
            output.float().sin().sum().backward()
            optimizer.step()
        report = scope.last
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = model(x).float().sin()
    named = dict(model.named_parameters())
    rows = [torch.autograd.grad(one.sum(), list(named.values()), retain_graph=True) for one in output]
    return report, {name: torch.stack([row[k].float().norm() for row in rows]) * len(x) for k, name in enumerate(named)}


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "all of it"])
@pytest.mark.parametrize("layers", [1, 2])
def test_an_lstm_in_bfloat16_raises_no_false_alarm(layers, autocast):
    """The gates that are computed again are closer to those of the one operator than the operator on single samples is."""
    report, norms = in_bfloat16(Net(nn.LSTM(32, 32, layers, batch_first=True)), torch.randn(8, 16, 32), autocast)
    for name, expected in norms.items():
        assert report.coverage[name].status == "exact", report.coverage[name]
        # Where the CPU has no such operator, each step's are followed.
        assert report.coverage[name].rule != "recomputed"
        torch.testing.assert_close(report.parameters[name].sample_norms.float(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_what_is_declined_is_described_another_way(kind):
    torch.manual_seed(3)
    module = kind(D, H, batch_first=True).double()
    module.forward = lambda x, forward=module.forward: tuple(one * 1 for one in forward(x)[:1])
    assert_described(*watched(Net(module), sequences(True)), ("matrix product", "add"))


def test_keywords_are_put_in_their_places():
    model = Net(nn.GRU(D, H, batch_first=True).double())
    x, hx = sequences(True), torch.randn(1, N, H, dtype=torch.float64)
    assert_described(*watched(model, input=x, hx=hx), "recurrent")


def test_frozen_weights_cost_the_others_nothing():
    model = Net(nn.LSTM(D, H, 3, batch_first=True).double())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(("hh_l1", "ih_l2")))
    report, norms = watched(model, sequences(True))
    assert len(norms) == 4
    assert_described(report, norms, "recurrent")


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_an_output_that_is_changed_in_place_is_seen(kind):
    model = Net(kind(D, H, batch_first=True).double(), lambda output: output.tanh_() * 2)
    assert_described(*watched(model, sequences(True)), ("matrix product", "add"))


def test_an_output_that_is_changed_when_no_longer_needed_is_computed_again():
    torch.manual_seed(5)
    module, x = nn.GRU(D, H, batch_first=True).double(), sequences(True)
    output, last = module(x)
    plan = find_plans(module, find_parameters(module))[0]
    call = RecurrentCall.of(plan, (x,), [output, last], N)
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    grads = [torch.randn_like(output), None]
    before = call.contributions(weights, (x,), grads, list(weights))
    assert call.intact()
    with torch.no_grad():
        output.zero_()
    assert not call.intact()
    after = call.contributions(weights, (x,), grads, list(weights))
    for name, contribution in before.items():
        torch.testing.assert_close(after[name].dense(), contribution.dense())


def test_an_error_in_the_form_is_noticed(monkeypatch):
    """The guard stands behind every rule: contributions that do not add up to the gradient are withheld."""
    back, *rest = _KINDS["GRU"]

    def wrong(run):
        returned = back(run)
        returned.read.mul_(1.01)
        return returned

    monkeypatch.setitem(_KINDS, "GRU", (wrong, *rest))
    report, _ = watched(Net(nn.GRU(D, H, batch_first=True).double()), sequences(True))
    assert report.coverage["inner.weight_ih_l0"].status == "mismatch"
    assert report.coverage["inner.weight_hh_l0"].status == "exact"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_nothing_is_held_after_the_backward(kind):
    model = Net(kind(D, H, 2, batch_first=True).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer):
        output = model(sequences(True))
        held = weakref.ref(output.untyped_storage())
        loss = output.sin().sum()
        loss.backward()
        gc.collect()
        assert held() is not None
        gc.disable()
        try:
            del output, loss
            assert held() is None
        finally:
            gc.enable()
