"""What is left behind: nothing after close, nothing that grows, nothing held longer than the graph holds it."""

import copy
import gc
import io
import itertools
import pickle
import tracemalloc
import weakref

import pytest
import torch
from torch import nn
from zoo import PROBLEMS
from zoo.measured import train_window

import gradscope
from gradscope.errors import ClosedScopeError


def net():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.LSTM(3, 2, batch_first=True))


def simple():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def window(model, optimizer, x=None):
    model(torch.randn(5, 4) if x is None else x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def belongings(model, optimizer):
    """Every attribute of every module, parameter and of the optimizer, and every hook."""
    found = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[name, key] = len(value) if hasattr(value, "__len__") else repr(type(value))
    for name, parameter in model.named_parameters():
        found[name, "dict"] = tuple(vars(parameter))
        found[name, "hooks"] = parameter._backward_hooks
        found[name, "post"] = getattr(parameter, "_post_accumulate_grad_hooks", None)
    for key, value in vars(optimizer).items():
        found["optimizer", key] = len(value) if key.endswith("hooks") else repr(type(value))
    return found


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_after_close_no_hook_and_no_attribute_is_left(problem):
    model = problem.model()
    optimizer = sgd(model, lr=0.0)
    train_window(problem, model, optimizer)
    optimizer.zero_grad()
    before = belongings(model, optimizer)
    with gradscope.watch(model, optimizer, batch_dim=problem.batch_dim):
        for _ in range(2):
            train_window(problem, model, optimizer)
            optimizer.zero_grad()
    assert belongings(model, optimizer) == before


def test_after_close_scope_and_recorder_die_with_their_last_reference():
    model = simple()
    optimizer = sgd(model)
    scope = gradscope.watch(model, optimizer, moments=True)
    window(model, optimizer)
    dead = [weakref.ref(scope), weakref.ref(scope._session.recorder)]
    scope.close()
    del scope
    gc.collect()
    assert [ref() for ref in dead] == [None, None]


def test_a_watched_model_that_is_dropped_is_collected():
    model = simple()
    optimizer = sgd(model)
    scope = gradscope.watch(model, optimizer)
    window(model, optimizer)
    dead = weakref.ref(model), weakref.ref(scope)
    del model, optimizer, scope
    gc.collect()
    assert [ref() for ref in dead] == [None, None]


def test_figures_stay_readable_after_close_and_nothing_is_measured_any_more():
    model = simple()
    optimizer = sgd(model)
    scope = gradscope.watch(model, optimizer)
    window(model, optimizer)
    scope.close()
    scope.close()
    window(model, optimizer)
    assert scope.last.last_window == scope.report().windows == 1
    for call in (lambda: scope.annotate([1.0]), scope.step, lambda: scope.log_to(io.StringIO())):
        with pytest.raises(ClosedScopeError, match="closed"):
            call()


def test_closing_in_the_middle_of_a_step_ends_no_run():
    model = simple()
    optimizer = sgd(model)
    scope = gradscope.watch(model, optimizer)
    loss = model(torch.randn(5, 4)).square().mean()
    scope.close()
    loss.backward()
    optimizer.step()
    assert scope.last is None


def test_the_model_can_be_watched_again_after_close():
    model = simple()
    optimizer = sgd(model)
    for _ in range(2):
        with gradscope.watch(model, optimizer) as scope:
            window(model, optimizer)
            assert scope.last.samples == 5


class Probed(nn.Module):
    """Keeps weak references to every intermediate tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 3), nn.LSTM(3, 3, batch_first=True), nn.Linear(3, 1)
        self.refs = []

    def forward(self, x):
        a = self.first(x)
        b = self.second(a)[0]
        c = b.tanh()
        self.refs = [weakref.ref(t) for t in (x, a, b, c)]
        return self.third(c)

    def alive(self):
        return [ref() is not None for ref in self.refs]


def probed():
    model = Probed()
    optimizer = sgd(model)
    return model, optimizer, gradscope.watch(model, optimizer, moments=True)


def assert_released(model, collect=False):
    if collect:
        gc.collect()
    assert not any(model.alive())


def test_activations_go_with_the_graph_after_a_backward():
    model, optimizer, scope = probed()
    model(torch.randn(5, 2, 4)).square().mean().backward()
    assert_released(model)
    optimizer.step()
    scope.close()


def test_activations_go_with_the_outputs_after_a_forward_without_backward():
    model, _, scope = probed()
    output = model(torch.randn(5, 2, 4))
    del output
    assert_released(model, collect=True)
    scope.close()


def test_activations_go_after_an_exception_between_forward_and_backward():
    model, optimizer, scope = probed()

    def broken():
        output = model(torch.randn(5, 2, 4))
        raise RuntimeError(output.shape)

    with pytest.raises(RuntimeError):
        broken()
    assert_released(model, collect=True)
    model(torch.randn(3, 2, 4)).square().mean().backward()
    optimizer.step()
    assert scope.last.samples == 3
    assert all(c.status == "exact" for c in scope.last.coverage.values())
    scope.close()


def test_activations_go_after_an_exception_inside_the_forward():
    model, optimizer, scope = probed()
    with pytest.raises(RuntimeError):
        model(torch.randn(5, 2, 7))
    model(torch.randn(3, 2, 4)).square().mean().backward()
    optimizer.step()
    assert scope.last.samples == 3
    assert_released(model)
    scope.close()


def test_activations_go_after_an_exception_inside_the_backward():
    class Boom(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("boom")

    model, optimizer, scope = probed()
    inner = model.second.forward
    model.second.forward = lambda x: inner(Boom.apply(x))
    with pytest.raises(RuntimeError, match="boom"):
        model(torch.randn(5, 2, 4)).square().mean().backward()
    del model.second.forward
    optimizer.zero_grad()
    assert_released(model, collect=True)
    model(torch.randn(3, 2, 4)).square().mean().backward()
    optimizer.step()
    assert scope.last.samples == 3
    assert scope.last.coverage["third.weight"].status == "exact"
    scope.close()


def test_nothing_is_kept_of_a_forward_under_no_grad():
    model, optimizer, scope = probed()
    with torch.no_grad():
        model(torch.randn(5, 2, 4))
    assert_released(model)
    window(model, optimizer, torch.randn(3, 2, 4))
    assert (scope.last.samples, scope.last.micro_steps) == (3, 1)
    scope.close()


def test_a_thousand_windows_grow_memory_by_nothing():
    model = nn.Linear(2, 1)
    optimizer = sgd(model, lr=0.01)
    x = torch.randn(3, 2)
    scope = gradscope.watch(model, optimizer, keep=5, moments=True)

    def run(windows):
        for _ in range(windows):
            window(model, optimizer, x)
        gc.collect()
        return len(gc.get_objects())

    tracemalloc.start()
    objects, memory = [run(300)], [tracemalloc.get_traced_memory()[0]]
    for _ in range(3):
        objects.append(run(350))
        memory.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    scope.close()
    # Caches and free lists fill up now and then; what is forgotten in every window grows in each of the three stretches.
    assert min(later - earlier for earlier, later in itertools.pairwise(objects)) < 20
    # One forgotten float per window would be 8,400 bytes.
    assert min(later - earlier for earlier, later in itertools.pairwise(memory)) < 6_000


def test_a_deep_copy_feeds_no_scope_and_has_no_hooks_of_ours():
    model = simple()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        window(model, optimizer)
        twin = copy.deepcopy(model)
        window(twin, sgd(twin))
        twin(torch.randn(2, 4)).sum().backward()
        window(model, optimizer)
        assert (scope.report().windows, scope.report().samples) == (2, 10)


def test_pickled_and_saved_models_carry_no_scope_and_work():
    model = simple()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        window(model, optimizer)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for twin in (pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
            assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))
            window(twin, sgd(twin))
        assert scope.report().windows == 1


def test_state_dicts_of_model_and_optimizer_are_clean():
    def states(watch):
        torch.manual_seed(0)
        model = simple()
        optimizer = torch.optim.Adam(model.parameters())
        scope = gradscope.watch(model, optimizer) if watch else None
        window(model, optimizer)
        found = list(model.state_dict()), [list(s) for s in optimizer.state_dict()["state"].values()]
        pickle.dumps(optimizer)
        if scope is not None:
            scope.close()
        return found

    assert states(True) == states(False)


def test_a_watched_model_whose_weights_are_loaded_goes_on():
    model = simple()
    optimizer = sgd(model)
    state = copy.deepcopy(model.state_dict())
    with gradscope.watch(model, optimizer) as scope:
        window(model, optimizer)
        model.load_state_dict(state)
        window(model, optimizer)
        assert scope.report().windows == 2


def test_a_scope_that_is_resumed_goes_on_where_it_stopped():
    torch.manual_seed(0)
    model = simple()
    optimizer = sgd(model, lr=0.0)
    batches = [torch.randn(5, 4) for _ in range(6)]
    with gradscope.watch(model, optimizer) as scope:
        for x in batches:
            window(model, optimizer, x)
        expected = scope.report()
    with gradscope.watch(model, optimizer) as first:
        for x in batches[:4]:
            window(model, optimizer, x)
        buffer = io.BytesIO()
        torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    with gradscope.watch(model, optimizer) as second:
        second.load_state_dict(torch.load(buffer, weights_only=True))
        for x in batches[4:]:
            window(model, optimizer, x)
        found = second.report()
    assert (found.windows, found.first_window, found.last_window, found.samples) == (6, 1, 6, 30)
    for figure in ("trace_cov", "grad_sq", "noise_scale", "grad_norm"):
        assert getattr(found.total, figure) == pytest.approx(getattr(expected.total, figure), rel=1e-6, nan_ok=True)
    assert found.total.noise_scale_interval == pytest.approx(expected.total.noise_scale_interval, rel=1e-6)


def test_a_state_of_another_model_is_refused():
    model, other = simple(), nn.Linear(4, 1)
    with gradscope.watch(model, sgd(model)) as scope:
        state = scope.state_dict()
    with gradscope.watch(other, sgd(other)) as scope:
        with pytest.raises(gradscope.errors.StateMismatchError, match="not the 2"):
            scope.load_state_dict(state)
        with pytest.raises(gradscope.errors.StateMismatchError, match="not what"):
            scope.load_state_dict({"some": "dictionary"})


@pytest.mark.parametrize("options", [{}, {"moments": True}, {"fused": True}, {"subsample": 3}], ids=str)
def test_a_model_that_is_converted_in_mid_run_is_measured_on(options):
    """``.to(dtype)`` keeps the parameters and changes what they hold: directions and layouts of before fit no more."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Flatten(), nn.Linear(18, 2))
    optimizer = sgd(model, lr=0.0)
    ids = torch.randint(9, (5, 3))
    with gradscope.watch(model, optimizer, **options) as scope:
        for k in range(9):
            if k == 3:
                model.double()
            if k == 6:
                model.float()
            model(ids).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            report = scope.last
            assert {one.status for one in report.coverage.values()} == {"exact"}
            assert not report.warnings
            assert max(one.error for one in report.coverage.values()) <= (1e-9 if 3 <= k < 6 else 1e-4)
        assert scope.report().windows == 9


def test_precision_that_rises_in_mid_run_is_no_mismatch():
    """Differences of half-precision windows are no differences of those that follow."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(8, 6)
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        for k in range(12):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=k % 6 < 3):
                loss = model(x).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            assert {one.status for one in scope.last.coverage.values()} == {"exact"}, k
        assert not scope.report().warnings


@pytest.mark.parametrize("capture", [True, False])
def test_what_vanishes_in_the_precision_that_a_model_is_converted_to_is_withheld(capture):
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double(), torch.randn(8, 6).double()
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer, capture=capture) as scope:
        for k in range(4):
            if k == 2:
                model.float()
            for part in x.to(model[0].weight.dtype).split(4):
                (1e-21 * model(part).square().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            withheld = {one.reason for one in scope.last.coverage.values() if "so small that squares" in one.reason}
            assert bool(withheld) == (k >= 2), k
