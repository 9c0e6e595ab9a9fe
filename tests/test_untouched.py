"""Watching changes no bit of the training: gradients, parameters, buffers, outputs, random state."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo import PROBLEMS
from zoo.measured import train_window

import gradscope


class Net(nn.Module):
    """Dropout, in-place activations, running statistics, a tied weight, a raw parameter."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 8)
        self.positions = nn.Parameter(torch.randn(5, 8))
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.InstanceNorm1d(8, affine=True, track_running_stats=True)
        self.recurrent = nn.GRU(8, 8, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.drop(self.embedding(ids) + self.positions)
        x = F.relu_(self.norm(self.conv(x.transpose(1, 2))).transpose(1, 2))
        x = self.drop(self.recurrent(x)[0]).tanh_()
        return self.head(x)


class Mixing(nn.Module):
    """BatchNorm in training mode: nothing to measure, and still nothing to change."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 8), nn.BatchNorm1d(8)
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 9))

    def forward(self, x):
        return self.head(self.norm(self.first(x.to(self.first.weight.dtype))))


def loss_of(output, target):
    return F.cross_entropy(output.reshape(-1, 9), target.reshape(-1)[: output.numel() // 9])


def run(build, dtype, steps, watch, *, optimizer_type=torch.optim.SGD, clip=True, **options):
    """A training run: everything that it left behind."""
    torch.manual_seed(7)
    model = build().to(dtype)
    optimizer = optimizer_type(model.parameters(), lr=0.05)
    if optimizer_type is torch.optim.SGD:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    scope = gradscope.watch(model, optimizer, **options) if watch else None
    trace = []
    for step in range(steps):
        for size in (4, 3):
            x = torch.randint(9, (size, 5))
            output = model(x)
            trace.append(output.detach().clone())
            (loss_of(output, x) / 2).backward()
        if step == 1:
            model.eval()
            with torch.no_grad():
                trace.append(model(x))
            model.train()
        if clip:
            trace.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).clone())
        trace.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=bool(step % 2))
        trace.append(torch.rand(2))
    if scope is not None:
        assert scope.last is not None
        assert not [w for w in scope.report().warnings if "failed" in w]
        scope.close()
    trace.extend(t.clone() for t in model.state_dict().values())
    trace.append(torch.get_rng_state())
    return trace


def assert_bitwise(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b) or (torch.equal(a.isnan(), b.isnan()) and torch.equal(a[~a.isnan()], b[~b.isnan()]))


@pytest.mark.parametrize("build", [Net, Mixing], ids=lambda build: build.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"moments": True},
        {"subsample": 2},
        {"every": 2},
        {"budget": 0},
        {"second_pass": True},
        {"capture": False},
        {"capture": "normalization"},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()) or "default",
)
def test_a_watched_training_run_is_bitwise_the_unwatched_one(build, dtype, options):
    assert_bitwise(run(build, dtype, 5, True, **options), run(build, dtype, 5, False))


@pytest.mark.parametrize("optimizer_type", [torch.optim.AdamW, torch.optim.RMSprop])
def test_with_other_optimizers_too(optimizer_type):
    found = run(Net, torch.float32, 4, True, optimizer_type=optimizer_type, clip=False, moments=True)
    assert_bitwise(found, run(Net, torch.float32, 4, False, optimizer_type=optimizer_type, clip=False))


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_on_every_problem_outputs_gradients_and_states_are_bitwise_equal(problem):
    results = []
    for watch in (True, False):
        model = problem.model(torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = gradscope.watch(model, optimizer, moments=True, batch_dim=problem.batch_dim) if watch else None
        trace = []
        for _ in range(2):
            train_window(problem, model, optimizer)
            trace.extend(p.grad.to_dense().clone() for p in model.parameters())
            optimizer.zero_grad()
        if scope is not None:
            scope.close()
        results.append([*trace, *(t.clone() for t in model.state_dict().values()), torch.get_rng_state()])
    assert_bitwise(*results)


def observed(watch, spy):
    """What a user's own hooks note during three windows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    finish = spy(model, seen)
    scope = gradscope.watch(model, optimizer) if watch else None
    for _ in range(3):
        output = model(torch.randn(5, 4))
        finish(output)
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    if scope is not None:
        scope.close()
    return [t() if callable(t) else t for t in seen]


def spy_on_leaves_and_calls(model, seen):
    model[0].weight.register_hook(lambda grad: seen.append(grad.clone()) or grad * 2)
    model[0].bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    model[2].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    model[2].register_forward_hook(lambda module, args, output: seen.append(output.detach().clone()))
    return lambda output: None


def spy_on_outputs(model, seen):
    return lambda output: output.register_hook(lambda grad: seen.append(grad.clone()))


def spy_on_retained(model, seen):
    def keep(output):
        output.retain_grad()
        seen.append(lambda: output.grad)

    model[2].register_forward_hook(lambda module, args, output: keep(output))
    model[0].register_forward_hook(lambda module, args, output: keep(output))
    return keep


def test_the_users_hooks_on_parameters_and_calls_see_what_they_saw():
    assert_bitwise(observed(True, spy_on_leaves_and_calls), observed(False, spy_on_leaves_and_calls))


def test_the_users_hooks_on_outputs_see_what_they_saw():
    assert_bitwise(observed(True, spy_on_outputs), observed(False, spy_on_outputs))


def test_retained_gradients_are_what_they_were():
    assert_bitwise(observed(True, spy_on_retained), observed(False, spy_on_retained))


def test_gradients_are_handed_over_not_copied():
    """A reference to the gradient that outlives its hook would make autograd copy it into .grad: more memory."""
    model = nn.Linear(4, 3)
    seen = []
    model.weight.register_hook(lambda grad: seen.append(grad.data_ptr()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer):
        model(torch.randn(5, 4)).square().mean().backward()
        assert model.weight.grad.data_ptr() == seen[-1]


def test_a_deep_copy_made_before_and_trained_alone_agrees_with_the_watched_one():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    twin = copy.deepcopy(model)
    x = torch.randn(6, 4)
    grads = []
    for one in (model, twin):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        scope = gradscope.watch(one, optimizer) if one is model else None
        for _ in range(3):
            one(x).square().mean().backward()
            optimizer.step()
            grads.append([p.grad.clone() for p in one.parameters()])
            optimizer.zero_grad()
        if scope is not None:
            scope.close()
    for a, b in zip(grads[:3], grads[3:], strict=True):
        assert_bitwise(a, b)


def test_hooks_of_the_users_own_on_outputs_run_beside_ours_and_can_be_taken_off():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, taken = [], []

    def watch_outputs(module, args, output):
        output.register_hook(lambda grad: seen.append(grad.clone()))
        handle = output.register_hook(lambda grad: taken.append(grad))
        output.register_hook(lambda grad: 2 * grad)
        handle.remove()

    model[0].register_forward_hook(watch_outputs)
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(3):
            x = torch.randn(5, 3, dtype=torch.float64)
            plain = copy.deepcopy(model)
            seen.clear()
            for one in (model, plain):
                one(x).square().mean().backward()
            # A guard window's inner backward comes first.
            assert torch.equal(seen[-1], seen[-2])
            assert not taken
            for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
                assert torch.equal(parameter.grad, other.grad)
            optimizer.step()
            optimizer.zero_grad()
        statuses = {name: coverage.status for name, coverage in scope.last.coverage.items()}
    assert statuses == {"0.weight": "mismatch", "0.bias": "mismatch", "2.weight": "exact", "2.bias": "exact"}
