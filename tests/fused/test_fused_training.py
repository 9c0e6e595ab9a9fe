"""``fused=True`` inside whatever users do with a layer: the gradient is autograd's, and nothing is left behind."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.capture import fused as capture_fused


@pytest.fixture(autouse=True)
def _wherever_possible(monkeypatch):
    """These layers are small: none would pay for it."""
    monkeypatch.setattr(capture_fused, "pays", lambda *args, **options: True)


class Net(nn.Module):
    """Two layers over a sequence, a convolution, and a place for whatever is tried between them."""

    def __init__(self, between=lambda self, h: h):
        super().__init__()
        self.first, self.second, self.conv = nn.Linear(3, 5), nn.Linear(5, 4), nn.Conv1d(4, 2, 3, padding=1)
        self.between = between

    def forward(self, x):
        h = self.between(self, self.first(x))
        return self.conv(self.second(torch.tanh(h)).mT).flatten(1)


def inputs(n=4):
    return torch.randn(n, 6, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def plain_step(model):
    model(inputs()).square().sum().backward()


def grads_after(model, step, windows, **options):
    """Gradients of the last window, and the report; without options nothing watches."""
    scope = gradscope.watch(model, **options) if options else None
    for _ in range(windows):
        for p in model.parameters():
            p.grad = None
        step(model)
        report = scope.step() if scope else None
    return [p.grad.clone() for p in model.parameters()], report


def assert_same(step, between=lambda self, h: h, windows=3, fused=True):
    """``.grad`` is an unwatched model's, and the layers were fused (or not)."""
    torch.manual_seed(0)
    model = Net(between).double()
    wanted, _ = grads_after(copy.deepcopy(model), step, 1)
    found, report = grads_after(model, step, windows, fused=True, moments=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    if fused is not None:
        assert any("fused" in c.rule for c in report.coverage.values()) is fused
    return report


def test_ordinary_windows_are_fused_and_guard_windows_are_not():
    assert_same(plain_step, windows=1, fused=False)
    report = assert_same(plain_step, windows=2)
    weights = [c for name, c in report.coverage.items() if name.endswith("weight")]
    assert all(c.status == "exact" and "fused" in c.rule for c in weights)


def test_outputs_are_bitwise_the_same():
    model = Net().double()
    wanted = model(inputs())
    with gradscope.watch(model, fused=True) as scope:
        plain_step(model)
        scope.step()
        assert torch.equal(model(inputs()), wanted)


def test_an_activation_in_place_after_a_fused_layer():
    assert_same(plain_step, lambda self, h: torch.relu_(h))


def test_a_gradient_penalty_differentiates_twice():
    def step(model):
        x = inputs().requires_grad_()
        out = model(x).square().sum()
        (grad,) = torch.autograd.grad(out, x, create_graph=True)
        (out + grad.square().sum()).backward()

    assert_same(step, fused=None)


def test_two_backwards_over_one_graph():
    def step(model):
        out = model(inputs())
        out.square().sum().backward(retain_graph=True)
        out.sum().backward()

    report = assert_same(step, fused=False)
    assert all(c.status == "exact" for c in report.coverage.values())


def test_gradients_of_the_inputs_alone_reach_no_parameter():
    def step(model):
        x = inputs().requires_grad_()
        torch.autograd.grad(model(x).sum(), x)
        plain_step(model)

    assert_same(step, fused=None)


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_inside_a_checkpoint(reentrant):
    def between(self, h):
        return checkpoint(self.twice, h, use_reentrant=reentrant)

    class Checkpointed(Net):
        def __init__(self):
            super().__init__(between)
            self.inner = nn.Linear(5, 5)

        def twice(self, h):
            return torch.tanh(self.inner(h))

    torch.manual_seed(0)
    model = Checkpointed().double()
    wanted, _ = grads_after(copy.deepcopy(model), plain_step, 1)
    found, report = grads_after(model, plain_step, 3, fused=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    # A reentrant checkpoint refuses tags, so that no layout is measured, and nothing is fused.
    assert ("fused" in report.coverage["second.weight"].rule) is not reentrant
    assert "fused" not in report.coverage["inner.weight"].rule


def test_a_forward_that_raises_leaves_the_layer_as_it_was():
    def step(model):
        with pytest.raises(RuntimeError):
            model.second(torch.randn(4, 6, 3).double())
        plain_step(model)

    assert_same(step)


def test_an_input_changed_in_place_raises_as_it_does_unwatched():
    def step(model):
        x = inputs().clone()
        loss = model(x).sum()
        x.add_(1)
        with pytest.raises(RuntimeError, match="inplace operation"):
            loss.backward()
        plain_step(model)

    assert_same(step, fused=None)


def test_clipping_and_a_hook_on_the_weight_see_what_they_always_see():
    seen = []

    def step(model):
        handle = model.first.weight.register_hook(lambda grad: seen.append(grad.clone()))
        plain_step(model)
        handle.remove()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    assert_same(step, fused=None)
    torch.testing.assert_close(seen[0], seen[-1], rtol=1e-11, atol=0)


def test_layers_with_hooks_of_the_users_own_are_left_to_autograd():
    torch.manual_seed(0)
    model = Net().double()
    model.first.register_full_backward_hook(lambda module, grads_in, grads_out: None)
    # Whose rows are whose is measured only where the hook may run once more.
    _, report = grads_after(model, plain_step, 2, fused=True, second_pass=True)
    assert "fused" not in report.coverage["first.weight"].rule
    assert "fused" in report.coverage["second.weight"].rule


def test_a_weight_used_twice_is_summed_before_squaring():
    report = assert_same(plain_step, lambda self, h: h + self.first(h[..., :3]), fused=None)
    assert report.coverage["first.weight"].status == "exact"


def test_a_failure_inside_the_product_leaves_autograds_gradient(monkeypatch, compiled):
    def fail(*args, **options):
        raise ValueError("broken")

    monkeypatch.setattr(f"gradscope.contributions.fused.{'outer_sums' if compiled else 'sums_of_products'}", fail)
    report = assert_same(plain_step, fused=None)
    # By the signed sums, which need no product.
    assert report.coverage["first.weight"].status == "estimated"


def test_a_wrong_sum_is_noticed(monkeypatch):
    original = capture_fused.FusedCall.gradients

    def off(self, *args, **options):
        total, bias = original(self, *args, **options)
        return (None if total is None else total * 1.01), bias

    monkeypatch.setattr(capture_fused.FusedCall, "gradients", off)
    _, report = grads_after(Net().double(), plain_step, 2, fused=True)
    assert report.coverage["first.weight"].status == "mismatch"


def test_under_autocast_layers_are_left_to_autograd():
    def step(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(inputs().float()).float().square().sum()
        loss.backward()

    torch.manual_seed(0)
    model = Net()
    wanted, _ = grads_after(copy.deepcopy(model), step, 1)
    found, _ = grads_after(model, step, 2, fused=True)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_torch_func_sees_the_layers_own_node():
    def step(model):
        plain_step(model)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        one = lambda p, x: torch.func.functional_call(model, p, (x,)).square().sum()  # noqa: E731
        torch.func.vmap(torch.func.grad(one), in_dims=(None, 0))(parameters, inputs()[:, None])

    assert_same(step, fused=None)


def test_batched_gradients_pass_through_a_fused_layer():
    def step(model):
        plain_step(model)
        x = inputs(2).requires_grad_()
        out = model(x).sum(1)
        (rows,) = torch.autograd.grad(out, x, torch.eye(2).double(), is_grads_batched=True)
        (whole,) = torch.autograd.grad(model(x).sum(), x)
        torch.testing.assert_close(rows.sum(0), whole)

    assert_same(step, fused=None)


def test_closing_leaves_nothing_behind_and_copies_are_plain():
    model = Net(_identity).double()
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    scope = gradscope.watch(model, fused=True)
    for _ in range(2):
        plain_step(model)
        scope.step()
    out = model(inputs())
    twin, thawed = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    scope.close()
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before
    assert all(not m._forward_hooks for m in model.modules())
    assert all(torch.equal(other(inputs()), out) for other in (twin, thawed))


def _identity(self, h):
    return h


def test_what_belongs_to_a_graph_goes_with_it(monkeypatch):
    calls = []
    original = capture_fused.FusedCall.gradients

    def noted(self, *args, **options):
        calls.append(weakref.ref(self.forward))
        return original(self, *args, **options)

    monkeypatch.setattr(capture_fused.FusedCall, "gradients", noted)
    model = Net().double()
    gc.disable()
    try:
        with gradscope.watch(model, fused=True) as scope:
            for _ in range(4):
                plain_step(model)
                scope.step()
            assert calls
            assert all(ref() is None for ref in calls)
    finally:
        gc.enable()


def test_gradients_in_a_process_group_of_one(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = Net().double()
        wanted, _ = grads_after(copy.deepcopy(model), plain_step, 1)
        parallel = nn.parallel.DistributedDataParallel(model)
        with gradscope.watch(parallel, fused=True) as scope:
            for _ in range(2):
                parallel.zero_grad()
                plain_step(parallel)
                report = scope.step()
        for parameter, b in zip(model.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, b, rtol=1e-11, atol=1e-13)
        assert "fused" in report.coverage["first.weight"].rule
    finally:
        torch.distributed.destroy_process_group()
