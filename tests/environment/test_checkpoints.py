"""Activation checkpointing of both kinds: the same figures, and the memory that it saves stays saved."""

import gc
import weakref
from functools import partial

import pytest
import torch
from models import Blocks, assert_agrees, assert_all, samples, statuses, train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradscope

KINDS = pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])


def build(reentrant, **how):
    torch.manual_seed(0)
    return Blocks(reentrant, **how).double()


@KINDS
@pytest.mark.parametrize("how", [{}, {"tied": True}, {"again": True}], ids=["plain", "tied inside", "used outside too"])
def test_checkpointed_blocks_have_the_figures_of_plain_ones(reentrant, how):
    expected = train(build(None, **how), samples())[-1]
    for report in train(build(reentrant, **how), samples(), windows=3):
        assert_all(report)
        assert_agrees(report, expected)


def test_a_reentrant_checkpoint_refuses_the_inner_backward_and_that_is_said():
    report = train(build(True), samples())[0]
    assert all("assumed, not measured" in coverage.reason for coverage in report.coverage.values())
    assert any("inner backward was refused" in line for line in report.warnings)


def test_a_non_reentrant_checkpoint_is_measured_like_everything_else():
    report = train(build(False), samples())[0]
    assert not any(coverage.reason for coverage in report.coverage.values())
    assert report.warnings == ()


@KINDS
def test_gradients_are_bitwise_those_of_an_unwatched_run(reentrant):
    grads = []
    for watched in (False, True):
        model = build(reentrant, tied=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scope = gradscope.watch(model, optimizer) if watched else None
        for _ in range(3):
            optimizer.zero_grad()
            model(samples()).square().mean().backward()
            optimizer.step()
        grads.append([parameter.grad for parameter in model.parameters()])
        if scope is not None:
            scope.close()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


class RootMeanSquare(torch.nn.Module):
    """Without a rule: it is recomputed, until the operators in it are found to describe its weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, x):
        return self.weight * (x * x.square().mean(-1, keepdim=True).rsqrt())


@KINDS
def test_what_is_learnt_in_a_forward_does_not_end_its_recomputation(reentrant):
    def build(reentrant):
        model = Blocks(reentrant).double()
        for block in model.blocks:
            block.n = RootMeanSquare()
        return model

    expected = train(build(None), samples(), windows=3)
    for k, report in enumerate(train(build(reentrant), samples(), windows=3)):
        assert_all(report)
        assert set(report.parameters) == set(expected[k].parameters)


class Peak(TorchDispatchMode):
    """Largest number of bytes in storages that were alive at once, of those made while it is on."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return result

    def note(self, storage):
        key = storage._cdata
        if key in self.alive:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone():
            self.alive.pop(key, None)
            self.now -= size

        self.alive[key] = weakref.finalize(storage, gone)


def peak(model, x, watched, windows=2):
    """Peaks of the first window, which has an inner backward, and of the last, which needs none."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scope = gradscope.watch(model, optimizer) if watched else None
    for window in range(windows):
        gc.collect()
        with Peak() as memory:
            model(x).square().mean().backward()
        if window == 0:
            first = memory.peak
        optimizer.step()
        optimizer.zero_grad()
    if scope is not None:
        scope.close()
    return first, memory.peak


def blocks(reentrant):
    torch.manual_seed(0)
    return Blocks(reentrant, width=64, depth=12), torch.randn(16, 256, 4)


@pytest.mark.parametrize("reentrant", [None, False, True], ids=["no checkpoint", "non-reentrant", "reentrant"])
def test_peak_memory_is_that_of_an_unwatched_run_also_in_a_window_with_a_guard(reentrant):
    unwatched = peak(*blocks(reentrant), False)[1]
    guarded, watched = peak(*blocks(reentrant), True)
    assert watched <= 1.05 * unwatched
    assert guarded <= 1.05 * unwatched


def test_a_checkpoint_saves_memory():
    assert peak(*blocks(False), False)[1] < 0.3 * peak(*blocks(None), False)[1]


def test_a_guard_holds_no_second_set_of_gradients():
    torch.manual_seed(0)
    model, x = nn.Sequential(*[nn.Linear(256, 256) for _ in range(12)]), torch.randn(4, 256)
    assert peak(model, x, True)[0] <= 1.05 * peak(model, x, False)[1]


class Selective(torch.nn.Module):
    """Blocks whose checkpoints store what some operators return, and give it out once."""

    def __init__(self, raw):
        super().__init__()
        self.stem, self.head, self.block = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.rand(4)) if raw else None
        self.shift = nn.Parameter(torch.rand(4)) if raw else None

    def inside(self, x):
        x = self.block(x)
        return torch.tanh(x if self.scale is None else x + self.scale.exp() * self.shift.exp().cumsum(0))

    def forward(self, x):
        checkpoints = pytest.importorskip("torch.utils.checkpoint")
        saved = [torch.ops.aten.addmm.default, torch.ops.aten.mm.default]
        contexts = partial(checkpoints.create_selective_checkpoint_contexts, saved)
        return self.head(checkpoints.checkpoint(self.inside, self.stem(x), use_reentrant=False, context_fn=contexts))


@pytest.mark.parametrize("second_pass", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_a_selective_checkpoint_is_run_backward_once(raw, second_pass):
    torch.manual_seed(0)
    for report in train(Selective(raw).double(), samples(), windows=3, second_pass=second_pass):
        assert any("selective" in line for line in report.warnings) or report.warnings == ()
        assert set(statuses(report).values()) <= {"exact", "not measured", "second pass"}
        assert report.coverage["block.weight"].status == "exact"
