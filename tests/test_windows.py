"""When a window begins and ends, what belongs to it, and what the user says of its samples."""

import copy
import itertools
import math
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from zoo import figures

import gradscope

N = 6


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def samples(n=N, seed=5):
    return 0.5 + torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def losses(model, x):
    """One loss per sample."""
    return (model(x) + x[:, :2]).square().sum(1)


def contributions(model, x, weights=None, frozen=None):
    """hᵢ of Σ weights·losses, from one backward per sample on a copy; parameter by parameter."""
    model = copy.deepcopy(model).requires_grad_()
    weights = torch.full((len(x),), 1 / len(x), dtype=torch.float64) if weights is None else weights
    parts = [torch.autograd.grad(w * losses(model, one[None]).sum(), tuple(model.parameters())) for w, one in
             zip(weights, x, strict=True)]  # fmt: skip
    names = [name for name, _ in model.named_parameters()]
    return [torch.stack(column) for name, *column in zip(names, *parts, strict=True) if name != frozen]


def assert_total(report, parts, **kwargs):
    expected = figures(parts, **kwargs)
    for name in ("grad_norm", "trace_cov", "grad_sq", "noise_scale", "snr", "diversity"):
        assert getattr(report.total, name) == pytest.approx(getattr(expected, name), rel=1e-9, nan_ok=True), name
    torch.testing.assert_close(report.total.sample_norms, expected.sample_norms, rtol=1e-9, atol=0)


def backward(model, x, divisor=None):
    (losses(model, x).sum() / (divisor or len(x))).backward()


def warnings_of(scope):
    return " | ".join(scope.report().warnings)


# -- where windows end ---------------------------------------------------------------------------------------------------


def test_the_optimizers_step_closes_a_window_and_figures_are_before_the_step():
    model, x = net(), samples()
    optimizer = sgd(model, lr=10.0)
    expected = contributions(model, x)
    with gradscope.watch(model, optimizer) as scope:
        backward(model, x)
        assert scope.last is None
        optimizer.step()
        assert_total(scope.last, expected)


def test_without_an_optimizer_step_closes_it():
    model, x = net(), samples()
    with gradscope.watch(model) as scope:
        backward(model, x[:4], N)
        backward(model, x[4:], N)
        report = scope.step()
        assert_total(report, contributions(model, x))
        assert (report.micro_steps, report.samples) == (2, 6)


def test_a_step_without_a_backward_makes_no_window():
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        optimizer.step()
        assert scope.last is None
        assert scope.step().windows == 0
        backward(model, samples())
        optimizer.step()
        optimizer.step()
        assert scope.report().windows == 1


def test_a_short_last_window_has_its_own_n():
    model = net()
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        for n in (6, 6, 2):
            backward(model, samples(n))
            optimizer.step()
            optimizer.zero_grad()
        assert_total(scope.last, contributions(model, samples(2)))
        report = scope.report()
        assert (report.samples, report.window_samples, report.windows) == (14, 2, 3)


def test_several_windows_give_the_ratio_of_means_and_the_newest_ones_norms():
    model = net()
    optimizer = sgd(model, lr=0.0)
    each = []
    with gradscope.watch(model, optimizer) as scope:
        for seed in range(4):
            backward(model, samples(seed=seed))
            optimizer.step()
            optimizer.zero_grad()
            each.append(figures(contributions(model, samples(seed=seed))))
        total = scope.report().total
    assert total.trace_cov == pytest.approx(sum(f.trace_cov for f in each) / 4, rel=1e-9)
    assert total.grad_sq == pytest.approx(sum(f.grad_sq for f in each) / 4, rel=1e-9)
    assert total.history == pytest.approx([f.noise_scale for f in each], rel=1e-9, nan_ok=True)
    assert total.grad_norm == pytest.approx(each[-1].grad_norm, rel=1e-9)
    assert (total.noise_scale_interval, total.resolved) == ((0.0, math.inf), False)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_either_way_of_zero_grad_gives_the_same_windows(set_to_none):
    model = net()
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer, moments=True) as scope:
        for seed in range(3):
            optimizer.zero_grad(set_to_none=set_to_none)
            backward(model, samples(3, seed), N)
            backward(model, samples(3, seed + 9), N)
            optimizer.step()
            x = torch.cat([samples(3, seed), samples(3, seed + 9)])
            assert_total(scope.last, contributions(model, x))
            assert scope.last.warnings == ()


def test_without_zero_grad_the_window_is_what_was_added_since_the_last_step():
    model = net()
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer, moments=True) as scope:
        for seed in range(3):
            backward(model, samples(seed=seed))
            optimizer.step()
            assert_total(scope.last, contributions(model, samples(seed=seed)))


def test_zero_grad_in_the_middle_of_a_window_drops_what_came_before_and_says_so():
    model = net()
    optimizer = sgd(model)
    expected = contributions(model, samples(seed=2))
    with gradscope.watch(model, optimizer) as scope:
        backward(model, samples(seed=1))
        optimizer.zero_grad()
        backward(model, samples(seed=2))
        optimizer.step()
        assert_total(scope.last, expected)
        assert (scope.last.samples, scope.last.micro_steps) == (6, 1)
        assert "drop" in warnings_of(scope) or "cleared" in warnings_of(scope)


def test_zero_grad_without_none_in_the_middle_of_a_window_is_noticed():
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        backward(model, samples(seed=1))
        optimizer.zero_grad(set_to_none=False)
        backward(model, samples(seed=2))
        optimizer.step()
        statuses = {c.status for c in scope.last.coverage.values()}
        if statuses == {"exact"}:
            assert scope.last.samples == 6
        else:
            assert statuses == {"not measured"}
            assert "changed between micro-steps" in scope.last.coverage["0.weight"].reason


def test_clipping_before_the_step_changes_no_figure():
    model, x = net(), samples()
    optimizer = sgd(model)
    expected = contributions(model, x)
    with gradscope.watch(model, optimizer, moments=True) as scope:
        backward(model, x)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        assert_total(scope.last, expected)
        assert {c.status for c in scope.last.coverage.values()} == {"exact"}


def test_clipping_inside_the_window_withholds_the_figures_and_says_so():
    model, x = net(), samples()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        for part in (x[:3], x[3:]):
            backward(model, part)
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        for coverage in scope.last.coverage.values():
            assert coverage.status == "not measured"
            assert "clipped or unscaled inside the window" in coverage.reason
        assert math.isnan(scope.last.total.trace_cov)


def test_several_optimizers_close_one_window_together():
    model, x = net(), samples()
    first, second = sgd(model[0], lr=0.0), torch.optim.Adam(model[2].parameters(), lr=0.0)
    with gradscope.watch(model, first, second) as scope:
        for _ in range(3):
            backward(model, x)
            first.step()
            second.step()
            model.zero_grad()
        assert scope.report().windows == 3
        assert_total(scope.last, contributions(model, x))


def test_a_window_waits_only_for_optimizers_whose_parameters_received_a_gradient():
    model, x = net(), samples()
    first, second = sgd(model[0], lr=0.0), sgd(model[2], lr=0.0)
    with gradscope.watch(model, first, second) as scope:
        model[2](x @ torch.randn(4, 5, dtype=torch.float64)).square().mean().backward()
        second.step()
        assert scope.report().windows == 1
        assert scope.last.coverage["0.weight"].status == "no gradient"
        assert scope.last.coverage["2.weight"].status == "exact"


def test_lbfgs_closes_one_window_a_step_over_its_closures():
    model, x = net(), samples()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=1)
    expected = contributions(model, x)

    def closure():
        optimizer.zero_grad()
        backward(model, x)
        return losses(model, x).mean().detach()

    with gradscope.watch(model, optimizer) as scope:
        optimizer.step(closure)
        assert scope.report().windows == 1
        assert_total(scope.last, expected)
        optimizer.step(closure)
        assert (scope.report().windows, scope.last.samples) == (2, 6)


def test_a_closure_of_an_ordinary_optimizer_is_measured_in_its_own_step():
    model, x = net(), samples()
    optimizer = sgd(model)
    expected = contributions(model, x)

    def closure():
        optimizer.zero_grad()
        loss = losses(model, x).mean()
        loss.backward()
        return loss

    with gradscope.watch(model, optimizer) as scope:
        optimizer.step(closure)
        assert_total(scope.last, expected)


# -- which windows -------------------------------------------------------------------------------------------------------


def test_every_measures_each_kth_window_and_has_no_hook_in_the_others():
    model = net()
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer, every=3) as scope:
        hooks = []
        for seed in range(7):
            hooks.append(bool(model[0]._forward_hooks))
            for part in samples(seed=seed).split(3):
                backward(model, part, N)
            optimizer.step()
            optimizer.zero_grad()
        report = scope.report()
        assert hooks == [True, False, False, True, False, False, True]
        assert (report.windows, report.first_window, report.last_window) == (3, 1, 7)
        assert_total(scope.last, contributions(model, samples(seed=6)))


def test_keep_bounds_the_windows():
    model = net()
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer, keep=2) as scope:
        for seed in range(4):
            backward(model, samples(seed=seed))
            optimizer.step()
            optimizer.zero_grad()
        assert (scope.report(last=50).windows, scope.report(last=1).first_window) == (2, 4)


# -- what the user says --------------------------------------------------------------------------------------------------


def weighted(h, weights):
    """Figures of the design's section 3, written out for weights."""
    h = torch.cat([part.flatten(1) for part in h], 1)
    share = weights / weights.sum()
    v2, grad, n = float((share**2).sum()), h.sum(0), len(h)
    grad_sq = float(grad.square().sum() - h.square().sum()) / (1 - v2)
    return float(grad.norm()), (h / share[:, None]).norm(dim=1), n * (float(grad.square().sum()) - grad_sq), grad_sq


def test_weights_and_ids_belong_to_the_next_backward():
    model, x = net(), samples()
    optimizer = sgd(model)
    weights = torch.tensor([1.0, 5.0, 2.0, 3.0, 1.0, 4.0], dtype=torch.float64)
    h = contributions(model, x, weights / weights.sum())
    grad_norm, norms, trace, grad_sq = weighted(h, weights)
    with gradscope.watch(model, optimizer) as scope:
        for part, name in ((slice(0, 2), "a"), (slice(2, 6), "b")):
            loss = (losses(model, x[part]) * weights[part]).sum() / weights.sum()
            scope.annotate(weights=weights[part], ids=[f"{name}{i}" for i in range(len(x[part]))])
            loss.backward()
        optimizer.step()
        total = scope.last.total
    assert total.grad_norm == pytest.approx(grad_norm, rel=1e-9)
    torch.testing.assert_close(total.sample_norms, norms, rtol=1e-9, atol=0)
    assert total.trace_cov == pytest.approx(trace, rel=1e-9)
    assert total.grad_sq == pytest.approx(grad_sq, rel=1e-9)


def test_an_annotation_before_the_forward_holds_too_and_ends_with_its_micro_step():
    model, x = net(), samples()
    optimizer = sgd(model)
    x[4] *= 50
    with gradscope.watch(model, optimizer) as scope:
        scope.annotate(ids=list("uvwxyz"))
        backward(model, x)
        optimizer.step()
        assert [(o.index, o.id) for o in scope.last.total.worst] == [(4, "y")]
        optimizer.zero_grad()
        backward(model, x)
        optimizer.step()
        assert [(o.index, o.id) for o in scope.last.total.worst] == [(4, None)]


def test_subsampled_squares_are_unbiased_over_all_choices(monkeypatch):
    """Mean over every choice of 2 of 5 samples, through the product's own draw; the gradient itself is exact."""
    model, x = net(), samples(5)
    optimizer = sgd(model, lr=0.0)
    expected = figures(contributions(model, x))
    choices = list(itertools.combinations(range(5), 2))
    found = []
    real = torch.randperm
    with gradscope.watch(model, optimizer, subsample=2) as scope:
        for choice in choices:
            order = [*choice, *(i for i in range(5) if i not in choice)]
            with monkeypatch.context() as patch:
                patch.setattr(
                    torch, "randperm", lambda n, *, order=order, **kw: torch.tensor(order) if n == 5 else real(n, **kw)
                )
                backward(model, x)
            optimizer.step()
            optimizer.zero_grad()
            total = scope.last.total
            found.append(total)
            chosen = torch.tensor(choice)
            torch.testing.assert_close(total.sample_norms[chosen], expected.sample_norms[chosen], rtol=1e-9, atol=0)
            assert int(total.sample_norms.isnan().sum()) == 3
            assert total.grad_norm == pytest.approx(expected.grad_norm, rel=1e-9)
    for figure in ("trace_cov", "grad_sq"):
        mean = sum(getattr(total, figure) for total in found) / len(found)
        assert mean == pytest.approx(getattr(expected, figure), rel=1e-9)


def test_subsample_draws_from_a_generator_of_its_own():
    state = torch.get_rng_state()
    model = net()
    state = torch.get_rng_state()
    with gradscope.watch(model, subsample=2) as scope:
        backward(model, samples())
        scope.step()
    assert torch.equal(state, torch.get_rng_state())


def test_ignored_parameters_are_left_out_of_everything_and_named():
    model, x = net(), samples()
    optimizer = sgd(model)
    parts = contributions(model, x)
    with gradscope.watch(model, optimizer, ignore=["0.bias", model[2]]) as scope:
        backward(model, x)
        optimizer.step()
        report = scope.last
    assert {k: c.status for k, c in report.coverage.items()} == {
        "0.weight": "exact", "0.bias": "not measured", "2.weight": "not measured", "2.bias": "not measured",
    }  # fmt: skip
    assert "ignored" in report.coverage["0.bias"].reason
    assert report.total.numel == 20
    assert_total(report, parts[:1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        for _ in range(4):
            x = self.inner(x).tanh()
        return x[:, :2]


def test_beyond_the_budget_a_reused_parameter_is_estimated_and_the_cost_is_named():
    model, x = Tied().double(), samples()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, budget=100) as scope:
        backward(model, x)
        optimizer.step()
        coverage = scope.last.coverage["inner.weight"]
        assert coverage.status == "estimated"
        assert "budget" in coverage.reason
        assert "MiB" in coverage.reason
    with gradscope.watch(model, optimizer, budget=1 << 20) as scope:
        backward(model, x)
        optimizer.step()
        assert scope.last.coverage["inner.weight"].status == "exact"


# -- several backwards, several forwards -------------------------------------------------------------------------------------


def test_two_losses_on_one_forward_are_one_micro_step():
    model, x = net(), samples()
    optimizer = sgd(model)
    found = contributions(model, x)
    with gradscope.watch(model, optimizer, moments=True) as scope:
        output = model(x)
        parts = (output + x[:, :2]).square()
        (parts[:, 0].sum() / N).backward(retain_graph=True)
        (parts[:, 1].sum() / N).backward()
        optimizer.step()
        assert_total(scope.last, found)
        assert scope.last.micro_steps == 1


def test_a_graph_that_is_kept_to_the_end_is_finished_by_the_step():
    model, x = net(), samples()
    optimizer = sgd(model)
    found = contributions(model, x)
    with gradscope.watch(model, optimizer) as scope:
        loss = losses(model, x).mean()
        loss.backward(retain_graph=True)
        optimizer.step()
        assert_total(scope.last, found)


def two_forwards(same):
    model, x, y = net(), samples(seed=1), samples(seed=2)
    optimizer = sgd(model)
    first, second = contributions(model, x), contributions(model, y)
    with gradscope.watch(model, optimizer) as scope:
        loss = losses(model, x).mean() + losses(model, y).mean()
        if same is not None:
            scope.annotate(same_samples=same)
        loss.backward()
        optimizer.step()
        return scope.last, first, second


def test_two_forwards_of_the_same_samples_are_summed_per_sample():
    report, first, second = two_forwards(True)
    assert report.samples == 6
    assert_total(report, [a + b for a, b in zip(first, second, strict=True)])


def test_two_forwards_of_different_samples_are_twice_as_many_samples():
    report, first, second = two_forwards(False)
    assert report.samples == 12
    assert_total(report, [torch.cat(pair) for pair in zip(first, second, strict=True)])


def test_two_forwards_of_which_nothing_is_known_have_no_figures_and_say_what_to_do():
    report, _, _ = two_forwards(None)
    for coverage in report.coverage.values():
        assert coverage.status == "not measured"
        assert "same_samples=True" in coverage.reason
    assert math.isnan(report.total.trace_cov)


@pytest.mark.parametrize("fused", [False, True], ids=["hooks", "fused"])
@pytest.mark.parametrize("of", ["inputs", "parameters", "one parameter"])
def test_gradients_that_are_asked_for_between_forward_and_backward_change_no_figure(of, fused):
    model, x = net(), samples()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, fused=fused) as scope:
        for window in range(3):
            found = contributions(model, x)
            seen = x.clone().requires_grad_()
            loss = losses(model, seen).mean()
            sought = {"inputs": [seen], "parameters": list(model.parameters()), "one parameter": [model[0].weight]}[of]
            for _ in range(window + 1):
                torch.autograd.grad(loss, sought, retain_graph=True)
            loss.backward(retain_graph=True)
            torch.autograd.grad(loss, sought)
            optimizer.step()
            assert_total(scope.last, found)
            assert (scope.last.samples, scope.last.micro_steps) == (6, 1)
            assert {coverage.status for coverage in scope.last.coverage.values()} == {"exact"}
            optimizer.zero_grad()


def test_a_parameter_that_was_frozen_since_is_in_nobodys_way_when_the_graph_is_kept():
    model, x = net(), samples()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        model[0].bias.requires_grad_(False)
        for _ in range(3):
            found = contributions(model, x, frozen="0.bias")
            loss = losses(model, x).mean()
            (0.5 * loss).backward(retain_graph=True)
            (0.5 * loss).backward()
            optimizer.step()
            assert_total(scope.last, found)
            statuses = {name: coverage.status for name, coverage in scope.last.coverage.items()}
            assert statuses.pop("0.bias") == "frozen"
            assert set(statuses.values()) == {"exact"}
            optimizer.zero_grad()


class Impatient(nn.Module):
    """Runs backward inside its own forward; its first layer is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)
        self.now = True

    def forward(self, x):
        y = self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))
        if self.now:
            y.square().mean().backward()
        return y


@pytest.mark.parametrize("size", [(6, 4), (6, 3, 4)], ids=["rows", "positions"])
def test_a_backward_inside_the_forward_misses_no_use_of_a_layer(size):
    torch.manual_seed(3)
    model, x = Impatient().double(), torch.randn(size, dtype=torch.float64)
    single = copy.deepcopy(model)
    single.now = False
    parts = [torch.autograd.grad(single(one[None]).square().mean() / len(x), tuple(single.parameters())) for one in x]
    found, optimizer = [torch.stack(column) for column in zip(*parts, strict=True)], sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        # Windows that begin and end as usual first, so that layouts are known.
        for now in (False, False, True, True, False):
            model.now = now
            y = model(x)
            if not now:
                y.square().mean().backward()
            optimizer.step()
            report = scope.report(last=1)
            assert_total(report, found)
            assert {coverage.status for coverage in report.coverage.values()} == {"exact"}
            optimizer.zero_grad()


def test_saliency_of_a_forward_of_its_own_adds_no_samples():
    model, x = net(), samples()
    optimizer = sgd(model)
    found = contributions(model, x)
    with gradscope.watch(model, optimizer) as scope:
        seen = x.clone().requires_grad_()
        torch.autograd.grad(losses(model, seen).mean(), seen)
        backward(model, x)
        optimizer.step()
        assert (scope.last.samples, scope.last.micro_steps) == (6, 1)
        assert_total(scope.last, found)


def test_saliency_uses_up_no_annotation():
    model, x = net(), samples()
    optimizer = sgd(model)
    x[4] *= 50
    with gradscope.watch(model, optimizer) as scope:
        scope.annotate(ids=list("uvwxyz"))
        seen = x.clone().requires_grad_()
        torch.autograd.grad(losses(model, seen).mean(), seen)
        backward(model, x)
        optimizer.step()
        assert [(o.index, o.id) for o in scope.last.total.worst] == [(4, "y")]


@pytest.mark.parametrize("after", [False, True])
def test_gradients_that_the_user_takes_by_autograd_grad_belong_to_no_window(after):
    model, x = net(), samples()
    optimizer = sgd(model)
    found = contributions(model, x)

    def take():
        torch.autograd.grad(losses(model, samples(4)).mean(), tuple(model.parameters()))

    with gradscope.watch(model, optimizer) as scope:
        for k in range(2):
            if k or not after:
                take()
            backward(model, x[3 * k : 3 * k + 3], N)
        if after:
            take()
        optimizer.step()
        assert (scope.last.samples, scope.last.micro_steps) == (6, 2)
        assert_total(scope.last, found)


def test_a_penalty_with_a_backward_of_its_own_is_no_sample_and_is_said():
    model, x = net(), samples()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        backward(model, x)
        (0.1 * model[0].weight.square().sum()).backward()
        optimizer.step()
        coverage = scope.last.coverage
    assert (coverage["0.weight"].status, coverage["2.weight"].status) == ("not measured", "exact")
    assert "penalty" in coverage["0.weight"].reason


def test_a_penalty_inside_the_loss_is_a_mismatch_of_its_parameter_alone():
    model, x = net(), samples()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        (losses(model, x).mean() + 0.1 * model[0].weight.square().sum()).backward()
        optimizer.step()
        coverage = scope.last.coverage
    assert coverage["0.weight"].status in ("mismatch", "not measured")
    assert {coverage[name].status for name in ("0.bias", "2.weight", "2.bias")} == {"exact"}


def test_evaluation_between_micro_steps_is_no_sample():
    model, x = net(), samples()
    optimizer = sgd(model)
    found = contributions(model, x)
    with gradscope.watch(model, optimizer) as scope:
        backward(model, x[:2], N)
        model.eval()
        with torch.no_grad():
            model(samples(4))
        with torch.inference_mode():
            model(samples(4))
        model(samples(4))
        model.train()
        backward(model, x[2:], N)
        optimizer.step()
        assert_total(scope.last, found)
        assert scope.last.samples == 6


def test_a_gradient_penalty_is_measured_right_or_not_at_all():
    """A double backward reaches the weights along a way that no layer's output sees."""
    model, x = net(), samples()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        seen = x.clone().requires_grad_()
        output = losses(model, seen)
        (slope,) = torch.autograd.grad(output.sum(), seen, create_graph=True)
        (output.mean() + slope.square().sum(1).mean()).backward()
        grads = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        for name, coverage in scope.last.coverage.items():
            assert coverage.status in ("mismatch", "not measured", "no gradient", "estimated"), (name, coverage)
            assert coverage.reason
    twin = net()
    seen = x.clone().requires_grad_()
    output = losses(twin, seen)
    (slope,) = torch.autograd.grad(output.sum(), seen, create_graph=True)
    (output.mean() + slope.square().sum(1).mean()).backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(grads, twin.parameters(), strict=True))


class Checkpointed(nn.Module):
    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        x = x.clone().requires_grad_()
        x = checkpoint(self.inner[:2], x, use_reentrant=self.reentrant)
        return self.inner[2](x)


def test_activation_checkpoints_change_no_figure():
    model, x = Checkpointed(net(), False), samples()
    optimizer = sgd(model, lr=0.0)
    expected = contributions(net(), x)
    with gradscope.watch(model, optimizer, moments=True) as scope:
        for _ in range(2):
            for part in (x[:2], x[2:]):
                backward(model, part, N)
            optimizer.step()
            optimizer.zero_grad()
            assert_total(scope.last, expected)


def test_reentrant_checkpoints_are_never_silently_wrong_and_end_no_run():
    model, x = Checkpointed(net(), True), samples()
    optimizer = sgd(model, lr=0.0)
    expected = dict(zip(dict(net().named_parameters()), contributions(net(), x), strict=True))
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(2):
            backward(model, x)
            grads = [p.grad.clone() for p in model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
            for name, coverage in scope.last.coverage.items():
                if coverage.status == "exact":
                    truth = figures([expected[name.removeprefix("inner.")]])
                    assert scope.last.parameters[name].trace_cov == pytest.approx(truth.trace_cov, rel=1e-9)
                else:
                    assert coverage.reason
    twin = net()
    backward(twin, x)
    assert all(torch.equal(a, b.grad) for a, b in zip(grads, twin.parameters(), strict=True))


# -- models that change --------------------------------------------------------------------------------------------------


def two_windows(change):
    """A window before and one after a change of the model; both reports, and the contributions after it."""
    model, x = net(), samples()
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        backward(model, x)
        optimizer.step()
        model.zero_grad()
        first = scope.last
        change(model)
        backward(model, x)
        optimizer.step()
        model.zero_grad()
        second = scope.last
        backward(model, x)
        optimizer.step()
        third = scope.last
    return first, second, third, model, x


def status(report):
    return {name: coverage.status for name, coverage in report.coverage.items()}


def test_a_parameter_that_is_frozen_between_windows_is_called_frozen():
    _, second, third, _, _ = two_windows(lambda model: model[0].requires_grad_(False))
    for report in (second, third):
        assert status(report) == {"0.weight": "frozen", "0.bias": "frozen", "2.weight": "exact", "2.bias": "exact"}


def test_a_parameter_that_is_unfrozen_is_measured_from_the_next_window_on():
    model, x = net(), samples()
    model[0].requires_grad_(False)
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        backward(model, x)
        optimizer.step()
        model.zero_grad()
        assert status(scope.last)["0.weight"] == "frozen"
        model[0].requires_grad_(True)
        for _ in range(2):
            backward(model, x)
            optimizer.step()
            model.zero_grad()
        assert set(status(scope.last).values()) == {"exact"}
        assert_total(scope.last, contributions(model, x))


def test_a_replaced_layer_is_measured_from_the_next_window_on():
    def replace(model):
        model[2] = nn.Linear(5, 2).double()

    model, x = net(), samples()
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        backward(model, x)
        optimizer.step()
        model.zero_grad()
        replace(model)
        for _ in range(2):
            backward(model, x)
            optimizer.step()
            model.zero_grad()
        assert set(status(scope.last).values()) == {"exact"}
        assert_total(scope.last, contributions(model, x))


def test_an_added_parameter_does_not_end_the_run():
    def add(model):
        model.append(nn.Linear(2, 2).double())

    _, _, third, _, _ = two_windows(add)
    assert status(third) == dict.fromkeys(["0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"], "exact")


def test_train_and_eval_mode_may_alternate():
    model, x = nn.Sequential(net(), nn.Dropout(0.0)), samples()
    optimizer = sgd(model, lr=0.0)
    with gradscope.watch(model, optimizer) as scope:
        for k in range(4):
            model.train(bool(k % 2))
            backward(model, x)
            optimizer.step()
            model.zero_grad()
            assert_total(scope.last, contributions(model, x))


# -- mixed precision ------------------------------------------------------------------------------------------------------


def scaled_windows(passed, scale=2.0**10):
    torch.manual_seed(0)
    model = net().float()
    optimizer = sgd(model, lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    scope = gradscope.watch(model, optimizer, scaler=scaler if passed else None)
    return model, optimizer, scaler, scope


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("passed", [True, False])
def test_the_scale_of_a_gradscaler_is_divided_out(passed, unscale):
    model, optimizer, scaler, scope = scaled_windows(passed)
    x = samples().float()
    expected = figures([h.double() for h in contributions(copy.deepcopy(model).double(), x.double())])
    with scope:
        for _ in range(2):
            scaler.scale(losses(model, x).mean()).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert scope.last.total.trace_cov == pytest.approx(expected.trace_cov, rel=1e-4)
            assert scope.last.total.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
        assert ("GradScaler was noticed" in warnings_of(scope)) == (not passed)
        assert set(status(scope.last).values()) == {"exact"}


@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_step_that_the_scaler_skips_drops_its_window(passed, set_to_none):
    model, optimizer, scaler, scope = scaled_windows(passed)
    x = samples().float()
    with scope:
        for k in range(3):
            bad = k == 1
            scaler.scale(losses(model, x).mean() * (float("inf") if bad else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=set_to_none)
        report = scope.report()
        assert (report.windows, report.samples) == (2, 12)
        assert math.isfinite(report.total.trace_cov)
        assert report.last_window in (2, 3)


def test_a_report_that_fails_says_so_and_ends_no_run(monkeypatch):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()

        def broken(*_):
            raise RuntimeError("on purpose")

        monkeypatch.setattr(sys.modules["gradscope.summary.digest"], "unit_sample_norms", broken)
        report = scope.report()
        assert report.parameters == {}
        assert "these windows have no report: RuntimeError: on purpose" in " ".join(str(report).split())
        monkeypatch.undo()
        assert set(scope.report().parameters) == {"weight", "bias"}
