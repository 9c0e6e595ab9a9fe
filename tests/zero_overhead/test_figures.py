"""What capture=False reports is what autograd's own increments give."""

import copy
import itertools

import pytest
import torch
from micro_steps import by_hand, increments, losses, net, samples, sgd, window
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope


def assert_total(report, expected, rel=1e-9):
    found = (report.total.grad_norm, report.total.trace_cov, report.total.grad_sq)
    assert found == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("sizes", [[3, 3], [2, 2, 2], [1, 5], [1, 2, 3], [1] * 6], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_window_is_what_its_increments_give(sizes, weighted):
    model, x = net(), samples()
    weights = torch.tensor([1.0, 2, 0.5, 3, 1, 1.5], dtype=torch.float64) if weighted else None
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, capture=False) as scope:
        for _ in range(3):
            window(model, optimizer, x, sizes, weights=weights, scope=scope if weighted else None)
        report = scope.last
    assert_total(report, by_hand(increments(model, x, sizes, weights), sizes, weights))
    assert (report.samples, report.micro_steps) == (6, len(sizes))
    assert {one.status for one in report.coverage.values()} == {"estimated"}
    assert {one.rule for one in report.coverage.values()} == {"micro-steps"}
    assert report.total.sample_norms is None
    assert report.total.numel == sum(p.numel() for p in model.parameters())


def test_layers_and_parameters_have_their_own_figures():
    model, x, sizes = net(), samples(), [2, 4]
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, capture=False) as scope:
        window(model, optimizer, x, sizes)
        report = scope.last
    parts = increments(model, x, sizes)
    for i, (name, _) in enumerate(model.named_parameters()):
        _, trace_cov, grad_sq = by_hand([(part[i],) for part in parts], sizes)
        assert report.parameters[name].trace_cov == pytest.approx(trace_cov, rel=1e-9)
        assert report.parameters[name].grad_sq == pytest.approx(grad_sq, rel=1e-9)
    assert report.layers["0"].grad_sq == pytest.approx(by_hand([part[:2] for part in parts], sizes)[2], rel=1e-9)


def test_over_all_splits_it_is_what_capture_sees_sample_by_sample():
    model, x = net(), samples(4)
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        window(model, optimizer, x, [4])
        truth = scope.last.total
    orders = list(itertools.permutations(range(4)))
    with gradscope.watch(model, optimizer, capture=False) as scope:
        for order in orders:
            window(model, optimizer, x[list(order)], [1, 3])
        found = scope.report(last=len(orders)).total
    assert found.trace_cov == pytest.approx(truth.trace_cov, rel=1e-9)
    assert found.grad_sq == pytest.approx(truth.grad_sq, rel=1e-9)


def test_large_gradients_are_summed_without_losing_digits():
    torch.manual_seed(0)
    model = nn.Linear(1000, 700, bias=False)
    x = torch.randn(4, 1000)
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, capture=False) as scope:
        for part in x.split([2, 2]):
            model(part).square().mean().backward()
        optimizer.step()
        report = scope.last
    wide, parts = copy.deepcopy(model).double(), []
    for part in x.double().split([2, 2]):
        parts.append(torch.autograd.grad(wide(part).square().mean(), tuple(wide.parameters())))
    assert_total(report, by_hand(parts, [2, 2]), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_neither_vanish_nor_overflow(dtype):
    grads = {}
    model = nn.Linear(300, 1, bias=False).to(dtype)
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, capture=False) as scope:
        for k in range(2):
            (model(torch.full((2, 300), 2.0**-12 * (k + 1), dtype=dtype)).sum() * 2.0**-3).backward()
            grads[k] = model.weight.grad.double().clone()
        optimizer.step()
        report = scope.last
    truth = (grads[1].square().sum(), grads[0].square().sum() + (grads[1] - grads[0]).square().sum())
    assert report.total.grad_norm**2 == pytest.approx(float(truth[0]), rel=1e-3)
    assert report.total.grad_sq == pytest.approx(float(truth[0] - truth[1]) / 0.5, rel=1e-3)


def test_sparse_gradients_count_as_dense_ones():
    reports = []
    ids = torch.tensor([[0, 1, 1], [2, 2, 0], [3, 1, 0], [1, 1, 1]])
    for sparse in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Flatten(), nn.Linear(9, 2)).double()
        optimizer = sgd(model)
        with gradscope.watch(model, optimizer, capture=False) as scope:
            for part in ids.split([1, 3]):
                model(part).square().sum().backward()
            optimizer.step()
            reports.append(scope.last)
    assert_total(reports[1], (reports[0].total.grad_norm, reports[0].total.trace_cov, reports[0].total.grad_sq))
    assert reports[1].coverage["0.weight"].status == "estimated"


@pytest.mark.parametrize("reentrant", [False, True])
def test_models_whose_samples_mix_or_are_recomputed_are_measured_too(reentrant):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.cell = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.GRU(5, 3, batch_first=True)

        def forward(self, x):
            x = checkpoint(lambda h: torch.tanh(self.norm(self.first(h))), x, use_reentrant=reentrant)
            return self.cell(x.unsqueeze(1))[0][:, 0]

    torch.manual_seed(2)
    model, x = Model().double(), samples(8).requires_grad_()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, capture=False) as scope:
        for part in x.split(4):
            model(part).square().mean().backward()
        optimizer.step()
        report = scope.last
    parts = [torch.autograd.grad(model(part).square().mean(), tuple(model.parameters())) for part in x.split(4)] if (
        not reentrant) else None  # fmt: skip
    assert {one.status for one in report.coverage.values()} == {"estimated"}
    if parts is not None:
        assert_total(report, by_hand(parts, [4, 4]))


def test_a_loss_inside_the_model_and_a_gradient_penalty_are_fine():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            x = x.detach().requires_grad_()
            value = losses(self.net, x)
            (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            return {"loss": value.mean() + slope.square().sum(1).mean()}

    model, x = WithLoss(), samples()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, capture=False) as scope:
        for part in x.split(3):
            (model(part)["loss"] / 2).backward()
        optimizer.step()
        report = scope.last
    parts = [torch.autograd.grad(model(part)["loss"] / 2, tuple(model.parameters())) for part in x.split(3)]
    assert_total(report, by_hand(parts, [3, 3]))
