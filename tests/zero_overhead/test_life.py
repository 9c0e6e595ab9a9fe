"""Which micro-steps make a window, and what is withheld, with a reason, where increments say nothing."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from micro_steps import by_hand, increments, losses, net, samples, sgd, window
from torch import nn

import gradscope
from gradscope.runlog import read_run_log
from gradscope.summary import summarise


def watched(model, *optimizers, **options):
    return gradscope.watch(model, *optimizers, capture=False, **options)


def backward(model, x, divisor=None):
    (losses(model, x).sum() / (divisor or len(x))).backward()


def reasons(report):
    return {one.reason for one in report.coverage.values()}


def assert_withheld(report, text):
    assert {one.status for one in report.coverage.values()} == {"not measured"}, report.coverage
    assert all(text in reason for reason in reasons(report)), reasons(report)


def assert_total(report, model, x, sizes):
    norm, trace_cov, grad_sq = by_hand(increments(model, x, sizes), sizes)
    total = report.total
    assert (total.grad_norm, total.trace_cov, total.grad_sq) == pytest.approx((norm, trace_cov, grad_sq), rel=1e-9)


# -- windows --------------------------------------------------------------------------------------------------------------


def test_one_micro_step_is_withheld_and_says_what_to_do():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        window(model, optimizer, x, [6])
        report = scope.last
    assert_withheld(report, "split its batch into two or more micro-steps")
    norm = torch.cat([g.reshape(-1) for g in increments(model, x, [6])[0]]).norm()
    assert report.total.grad_norm == pytest.approx(float(norm), rel=1e-9)
    assert report.total.noise_scale != report.total.noise_scale
    assert "one micro-step" in report.total.reason
    assert "not finite" not in report.render(120)


def test_a_short_last_window_leaves_the_others_averages_alone():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for _ in range(6):
            window(model, optimizer, x, [3, 3])
        before = scope.report()
        window(model, optimizer, x, [6])
        after = scope.report()
    assert after.windows == 7
    assert (after.total.trace_cov, after.total.grad_sq) == (before.total.trace_cov, before.total.grad_sq)
    assert after.total.noise_scale_interval == before.total.noise_scale_interval
    assert any("one micro-step" in warning for warning in after.warnings)


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_cleared_either_way_begin_a_window(to_none):
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for _ in range(3):
            for part in x.split([2, 4]):
                backward(model, part, 6)
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
        assert_total(scope.last, model, x, [2, 4])
        assert scope.report().windows == 3


def test_gradients_never_cleared_are_withheld():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for _ in range(2):
            for part in x.split(3):
                backward(model, part, 6)
            optimizer.step()
        assert_withheld(scope.last, "no zero_grad?")


def test_clipping_before_the_step_changes_nothing_and_clipping_within_is_noticed():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for part in x.split(3):
            backward(model, part, 6)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        assert_total(scope.last, model, x, [3, 3])
        for part in x.split(3):
            backward(model, part, 6)
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        assert_withheld(scope.last, "was changed between micro-steps")


@pytest.mark.parametrize("given", [True, False])
def test_a_scaler_is_divided_out_and_its_skipped_steps_are_dropped(given):
    model, x = net(), samples()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    with watched(model, optimizer, **({"scaler": scaler} if given else {})) as scope:
        for broken in (False, True, False):
            for part in x.split([1, 5]):
                scaler.scale(losses(model, part).sum() / 6).backward()
            if broken:
                model[0].weight.grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert scope.report().windows == 2
        assert_total(scope.last, model, x, [1, 5])


def test_gradients_cleared_without_a_step_are_left_out():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        backward(model, samples(6, 8))
        optimizer.zero_grad()
        for part in x.split(3):
            backward(model, part, 6)
        optimizer.step()
        assert_total(scope.last, model, x, [3, 3])
        assert any("1 micro-step left out" in warning for warning in scope.last.warnings)


def test_two_optimizers_share_a_window():
    model, x = net(), samples()
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.0) for i in (0, 2))
    with watched(model, first, second) as scope:
        for _ in range(2):
            for part in x.split(3):
                backward(model, part, 6)
            first.step()
            second.step()
            model.zero_grad()
        assert scope.report().windows == 2
        assert_total(scope.last, model, x, [3, 3])


def test_without_an_optimizer_step_ends_the_window():
    model, x = net(), samples()
    with watched(model) as scope:
        for part in x.split(2):
            backward(model, part, 6)
        assert_total(scope.step(), model, x, [2, 2, 2])


def test_a_closure_is_one_window():
    model, x = net(), samples()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.0, max_iter=1)

    def closure():
        optimizer.zero_grad()
        for part in x.split(3):
            backward(model, part, 6)
        return losses(model, x).mean()

    with watched(model, optimizer) as scope:
        optimizer.step(closure)
        assert_total(scope.last, model, x, [3, 3])


def test_skipped_windows_have_no_hooks_and_the_others_are_measured():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer, every=3) as scope:
        for k in range(4):
            assert bool(model[0].weight._backward_hooks) == (k % 3 == 0)
            window(model, optimizer, x, [3, 3])
        report = scope.report()
    assert report.windows == 2
    assert report.last_window == 4


# -- micro-steps ----------------------------------------------------------------------------------------------------------


def test_forwards_that_no_backward_reaches_are_no_micro_steps():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for part in x.split(3):
            losses(model, samples(2, 9))
            with torch.no_grad():
                losses(model, samples(5, 9))
            backward(model, part, 6)
            torch.autograd.grad(losses(model, part).sum(), tuple(model.parameters()))
        optimizer.step()
        assert_total(scope.last, model, x, [3, 3])


def test_losses_with_a_backward_each_are_withheld_and_their_sum_is_not():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for part in x.split(3):
            loss = losses(model, part).sum() / 6
            (loss / 2).backward(retain_graph=True)
            (loss / 2).backward()
        optimizer.step()
        assert_withheld(scope.last, "call backward once")


@pytest.mark.parametrize("same", [None, True, False])
def test_two_forwards_in_one_backward_ask_whose_samples_they_saw(same):
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for part in x.split(3):
            loss = losses(model, part).mean() + losses(model, part + 0.1).mean()
            if same is not None:
                scope.annotate(same_samples=same)
            (loss / 2).backward()
        optimizer.step()
        report = scope.last
    if same is None:
        assert_withheld(report, "same_samples")
    else:
        assert {one.status for one in report.coverage.values()} == {"estimated"}
        assert report.samples == (6 if same else 12)


def test_a_penalty_on_the_weights_is_named():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for part in x.split(3):
            backward(model, part, 6)
            (0.1 * sum(p.square().sum() for p in model.parameters())).backward()
        optimizer.step()
        assert_withheld(scope.last, "belongs to no sample")


def test_unequal_micro_steps_say_how_they_were_weighed():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        window(model, optimizer, x, [2, 4])
        assert any("annotate(weights=...)" in warning for warning in scope.last.warnings)
        window(model, optimizer, x, [2, 4], weights=torch.ones(6, dtype=torch.float64), scope=scope)
        assert not scope.last.warnings


def test_a_mean_of_means_is_right_once_its_weights_are_said():
    model, x, sizes = net(), samples(), [2, 4]
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for part in x.split(sizes):
            scope.annotate(weights=torch.full((len(part),), 1 / len(part)))
            (losses(model, part).mean() / 2).backward()
        optimizer.step()
        report = scope.last
    parts = [torch.autograd.grad(losses(model, part).mean() / 2, tuple(model.parameters())) for part in x.split(sizes)]
    expected = by_hand(parts, sizes, torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25, 0.25], dtype=torch.float64))
    assert (report.total.grad_norm, report.total.trace_cov, report.total.grad_sq) == pytest.approx(expected, rel=1e-9)


def test_annotations_that_do_not_fit_raise_before_the_backward():
    model, x = net(), samples()
    with watched(model, sgd(model)) as scope:
        loss = losses(model, x).mean()
        with pytest.raises(gradscope.InvalidAnnotationError, match="6 samples"):
            scope.annotate(weights=torch.ones(5))
        loss.backward()


# -- parameters -----------------------------------------------------------------------------------------------------------


def test_frozen_ignored_unused_and_added_parameters_are_named():
    model, x = net(), samples()
    model.spare = nn.Linear(2, 2).double()
    model.forward = lambda x: model[2](model[1](model[0](x)))
    model[0].bias.requires_grad_(False)
    optimizer = sgd(model)
    with watched(model, optimizer, ignore=["2.bias"]) as scope:
        window(model, optimizer, x, [3, 3])
        status = {name: one.status for name, one in scope.last.coverage.items()}
        assert status == {
            "0.weight": "estimated", "0.bias": "frozen", "2.weight": "estimated", "2.bias": "not measured",
            "spare.weight": "no gradient", "spare.bias": "no gradient",
        }  # fmt: skip
        model[0].bias.requires_grad_(True)
        model[2] = nn.Linear(5, 2).double()
        optimizer.add_param_group({"params": list(model[2].parameters())})
        window(model, optimizer, x, [3, 3])
        window(model, optimizer, x, [3, 3])
        assert scope.last.coverage["0.bias"].status == scope.last.coverage["2.weight"].status == "estimated"


def test_a_part_that_few_micro_steps_use_counts_zero_in_the_others():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.experts = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)]).double()

        def forward(self, x):
            return self.experts[int(x.sum() > 0)](x)

    model, x = Routed(), torch.cat([samples(3).abs(), -samples(3, 6).abs()])
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        window(model, optimizer, x, [3, 3])
        report = scope.last
    assert report.parameters["experts.0.weight"].grad_sq == pytest.approx(0, abs=1e-12)
    assert report.coverage["experts.0.weight"].status == "estimated"


@pytest.mark.parametrize("late", [False, True])
def test_hooks_of_the_users_own_that_mask_a_gradient_are_seen_through(late):
    model, x = net(), samples()
    optimizer = sgd(model)
    mask = torch.rand(5, 4, dtype=torch.float64)
    if not late:
        model[0].weight.register_hook(lambda grad: grad * mask)
    with watched(model, optimizer) as scope:
        if late:
            model[0].weight.register_hook(lambda grad: grad * mask)
        window(model, optimizer, x, [3, 3])
        first = scope.last
        window(model, optimizer, x, [3, 3])
        report = scope.last
    if late:
        assert "a hook of your own" in first.coverage["0.weight"].reason
    # autograd.grad runs the user's hook as well.
    assert_total(report, model, x, [3, 3])


# -- life -----------------------------------------------------------------------------------------------------------------


def test_layers_carry_no_hooks_and_closing_leaves_nothing_behind():
    model, x = net(), samples()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for layer in model:
            assert not (layer._forward_hooks)
            assert not (layer._forward_pre_hooks)
            assert not (layer._backward_hooks)
        window(model, optimizer, x, [3, 3])
        assert scope.last is not None
    for name, module in model.named_modules():
        assert set(vars(module)) == set(before[name])
        assert not (module._forward_hooks)
        assert not (module._forward_pre_hooks)
    for parameter in model.parameters():
        assert parameter._backward_hooks is None
        assert parameter._post_accumulate_grad_hooks is None


def test_copies_and_pickles_of_a_watched_model_feed_nothing():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            backward(twin, x)
        window(model, optimizer, x, [3, 3])
        assert_total(scope.last, model, x, [3, 3])


def test_a_backward_that_raises_costs_no_later_window():
    model, x = net(), samples()
    optimizer = sgd(model)

    def fail(grad):
        raise RuntimeError("the user's own")

    with watched(model, optimizer) as scope:
        backward(model, x[:3], 6)
        value = model[1](model[0](x[3:]))
        value.register_hook(fail)
        with pytest.raises(RuntimeError, match="own"):
            (model(x[3:]).sum() + model[2](value).sum()).backward()
        optimizer.zero_grad()
        for _ in range(2):
            window(model, optimizer, x, [3, 3])
        assert_total(scope.last, model, x, [3, 3])


def test_a_resumed_run_and_a_run_log_hold_the_same_windows(tmp_path):
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        scope.log_to(tmp_path / "run.jsonl")
        for sizes in ([3, 3], [6], [2, 2, 2]):
            window(model, optimizer, x, sizes)
        state, report = scope.state_dict(), scope.report()
    with watched(model, optimizer) as again:
        again.load_state_dict(state)
        assert again.report().total.trace_cov == report.total.trace_cov
        assert repr(again.report().coverage) == repr(report.coverage)
        assert again.report().warnings == report.warnings
    log = read_run_log(tmp_path / "run.jsonl")
    found = summarise(log.parameters, log.windows)
    assert repr(found.coverage) == repr(report.coverage)
    assert found.total.noise_scale_interval == report.total.noise_scale_interval


@pytest.mark.parametrize("option", [{"subsample": 2}, {"moments": True}, {"second_pass": True}, {"budget": 9}])
def test_what_needs_samples_is_refused(option):
    model = net()
    with pytest.raises(gradscope.InvalidArgumentError, match="capture=False sees no sample"):
        watched(model, **option)


@pytest.mark.parametrize("value", [0, 1, None, "norms", "all"])
def test_other_values_of_capture_are_refused(value):
    with pytest.raises(gradscope.InvalidArgumentError, match="normalization"):
        gradscope.watch(net(), capture=value)


def test_the_report_says_how_its_figures_were_made():
    model, x = net(), samples()
    optimizer = sgd(model)
    with watched(model, optimizer) as scope:
        window(model, optimizer, x, [3, 3])
        text = scope.last.render(140)
    assert "4 estimated (100 %)" in text
    assert "from how the micro-steps of a window differ" in text
    assert "Σ per-sample" not in text


@pytest.mark.parametrize("first", ["watch", "compile"])
def test_compiled_models_are_measured(first):
    model, x = net(), samples()
    optimizer = sgd(model)
    if first == "compile":
        called = torch.compile(model, backend="eager")
        called(x)
    with watched(model, optimizer) as scope:
        if first == "watch":
            called = torch.compile(model, backend="eager")
        for part in x.split(3):
            ((called(part) + part[:, :2]).square().sum() / 6).backward()
        optimizer.step()
        assert_total(scope.last, model, x, [3, 3])


def test_a_scope_that_is_forgotten_goes_with_its_model():
    model, x = net(), samples()
    optimizer = sgd(model)
    scope = watched(model, optimizer)
    window(model, optimizer, x, [3, 3])
    seen = weakref.ref(model), weakref.ref(scope)
    del model, optimizer, scope
    gc.collect()
    assert [one() for one in seen] == [None, None]
