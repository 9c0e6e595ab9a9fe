"""Bad input: a clear error at once, or a clear line in the report; the user's run goes on and nothing else is lost."""

import io
import math
import re

import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import (
    AlreadyWatchedError,
    DuplicateRuleError,
    ForeignOptimizerError,
    GradscopeError,
    InvalidAnnotationError,
    InvalidArgumentError,
    UnsupportedTorchError,
    UnwatchableModelError,
)

N = 6

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def sgd(model, lr=0.0):
    return torch.optim.SGD(model.parameters(), lr=lr)


def samples(n=N, seed=5):
    return 0.5 + torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def window(model, optimizer, x=None):
    model(samples() if x is None else x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def report_of(model, x=None, **options):
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, **options) as scope:
        window(model, optimizer, x)
        return scope.last


# -- at watch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (lambda: nn.ReLU(), UnwatchableModelError, "no parameters"),
        (lambda: nn.Linear(2, 1).requires_grad_(False), UnwatchableModelError, "requires a gradient"),
        (lambda: nn.Linear(2, 1, device="meta"), UnwatchableModelError, "meta device"),
        (lambda: nn.DataParallel(nn.Linear(2, 1)), UnwatchableModelError, "DataParallel"),
        (lambda: torch.jit.trace(nn.Linear(2, 1), torch.ones(1, 2)), UnwatchableModelError, "traced"),
        (lambda: nn.Sequential(torch.jit.trace(nn.Linear(2, 1), torch.ones(1, 2))), UnwatchableModelError, "0 is a traced"),
        (lambda: [nn.Linear(2, 1)], InvalidArgumentError, "expected a torch.nn.Module, got list"),
        (lambda: nn.Linear(2, 1).forward, InvalidArgumentError, "expected a torch.nn.Module"),
    ],
)  # fmt: skip
def test_a_model_that_hooks_cannot_see_into_is_refused_with_the_reason(model, error, text):
    with pytest.raises(error, match=text):
        gradscope.watch(model())


def test_a_scripted_module_is_refused():
    model = torch.jit.script(nn.Linear(2, 1))
    with pytest.raises(UnwatchableModelError, match="scripted"):
        gradscope.watch(model)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"every": 0}, "every is a whole number from 1 on, got 0"),
        ({"every": 1.5}, "every"),
        ({"every": True}, "every"),
        ({"subsample": 0}, "subsample"),
        ({"keep": -1}, "keep"),
        ({"budget": -5}, "budget is a number of bytes"),
        ({"batch_dim": -1}, "batch_dim"),
        ({"ignore": ["nothing"]}, "'nothing' is neither a parameter nor a module"),
        ({"ignore": [nn.Linear(1, 1)]}, "not part of the watched model"),
        ({"ignore": "0.weigh"}, "0.weigh"),
    ],
)
def test_an_option_that_cannot_work_is_refused(options, text):
    model = net()
    with pytest.raises(InvalidArgumentError, match=text):
        gradscope.watch(model, **options)
    assert not any(module._forward_hooks for module in model.modules())
    gradscope.watch(model).close()


def test_an_optimizer_of_another_model_is_refused():
    model = net()
    with pytest.raises(ForeignOptimizerError, match="SGD steps none of the watched model's parameters"):
        gradscope.watch(model, sgd(net()))
    with pytest.raises(ForeignOptimizerError):
        gradscope.watch(model, sgd(model), sgd(net()))
    gradscope.watch(model).close()


@pytest.mark.parametrize("wrong", [None, "adam", [], nn.Linear(1, 1)])
def test_something_that_is_no_optimizer_is_refused(wrong):
    with pytest.raises(InvalidArgumentError, match=r"expected a torch\.optim\.Optimizer"):
        gradscope.watch(net(), wrong)


def test_two_scopes_on_one_model_or_a_part_of_it_are_refused():
    model = net()
    with gradscope.watch(model, sgd(model)) as scope:
        with pytest.raises(AlreadyWatchedError, match="watched already"):
            gradscope.watch(model)
        with pytest.raises(AlreadyWatchedError):
            gradscope.watch(nn.Sequential(model, nn.Linear(2, 2)))
        with pytest.raises(AlreadyWatchedError):
            gradscope.watch(model[0])
        window(model, sgd(model))
        assert scope.step().windows == 1
    gradscope.watch(model).close()


def test_a_model_is_watched_also_in_windows_that_every_skips():
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer, every=3):
        window(model, optimizer)
        with pytest.raises(AlreadyWatchedError):
            gradscope.watch(model)


# -- annotations ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        ({"weights": [1.0, 2.0]}, "got 2 weights.* 6 samples"),
        ({"ids": ["a"]}, "got 1 ids.* 6 samples"),
        ({"weights": [1.0, 0.0, 1, 1, 1, 1]}, "sample 1 has 0.0"),
        ({"weights": [1.0, 1, -2.0, 1, 1, 1]}, "sample 2 has -2.0"),
        ({"weights": [1.0, 1, 1, math.nan, 1, 1]}, "sample 3 has nan"),
        ({"weights": [1.0, 1, 1, math.inf, 1, 1]}, "sample 3 has inf"),
        ({"weights": torch.ones(6, 1)}, r"one number per sample, got shape \(6, 1\)"),
        ({"same_samples": 1.5}, "same_samples"),
    ],
)
def test_an_annotation_that_cannot_be_right_is_refused_and_changes_nothing(annotation, text):
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        loss = model(samples()).square().mean()
        with pytest.raises(InvalidAnnotationError, match=text):
            scope.annotate(**annotation)
        loss.backward()
        optimizer.step()
        assert scope.last.samples == 6
        assert math.isfinite(scope.last.total.trace_cov)


def test_weights_given_before_the_forward_that_turn_out_wrong_are_said_and_no_figure_uses_them():
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        scope.annotate(weights=[1.0, 2.0])
        window(model, optimizer)
        assert "2 weights for a micro-step of 6 samples" in " ".join(scope.report().warnings)
        assert math.isnan(scope.last.total.trace_cov)
        window(model, optimizer)
        assert math.isfinite(scope.last.total.trace_cov)


def test_ids_that_turn_out_wrong_are_left_out_and_the_figures_stay():
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        scope.annotate(ids=["a", "b"])
        window(model, optimizer)
        assert "2 ids for a micro-step of 6 samples" in " ".join(scope.report().warnings)
        assert math.isfinite(scope.last.total.trace_cov)


# -- reports -------------------------------------------------------------------------------------------------------------


def test_before_any_window_the_report_is_empty_and_says_so():
    with gradscope.watch(net()) as scope:
        report = scope.report()
        assert scope.last is None
        assert (report.windows, report.samples, dict(report.parameters)) == (0, 0, {})
        assert "no window" in report.verdict
        assert "no window" in report.render(80)
        report.to_json()


@pytest.mark.parametrize("last", [0, -1, 1.5, None])
def test_a_report_over_no_windows_is_refused(last):
    with gradscope.watch(net()) as scope, pytest.raises(InvalidArgumentError, match="last"):
        scope.report(last=last)


def test_a_window_of_one_sample_has_no_variance_and_says_why():
    model = net()
    report = report_of(model, samples(1))
    assert {c.status for c in report.coverage.values()} == {"exact"}
    assert math.isnan(report.total.trace_cov)
    assert "one sample" in report.total.reason
    assert report.total.sample_norms == pytest.approx([report.total.grad_norm])


def test_an_empty_micro_batch_ends_no_run():
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        model(samples(0)).square().sum().backward()
        model(samples()).square().mean().backward()
        optimizer.step()
        assert scope.report().windows == 1
        assert scope.last.samples == 6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("before", [0, 1])
def test_nan_in_one_sample_names_it_and_the_others_keep_their_norms(bad, before):
    model = net()
    x = samples()
    clean = report_of(model, x)
    x[2, 1] = bad

    def close_window(scope, x):
        model.zero_grad()
        model(x).square().mean().backward()
        return scope.step()

    with gradscope.watch(model) as scope:
        for _ in range(before):
            close_window(scope, samples())
        scope.annotate(ids=list("abcdef"))
        report = close_window(scope, x)
        assert any("not finite in sample #2 (c)" in line for line in report.warnings)
        others = [0, 1, 3, 4, 5]
        torch.testing.assert_close(report.total.sample_norms[others], clean.total.sample_norms[others])
        assert not report.total.sample_norms[2].isfinite()
        report.render(80), report.to_json(), report._repr_html_()
        assert close_window(scope, samples()).total.trace_cov == pytest.approx(clean.total.trace_cov)
        assert scope.report().total.trace_cov == pytest.approx(clean.total.trace_cov)


def test_mixing_samples_is_named_and_what_lies_behind_it_keeps_its_figures():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)).double()
    report = report_of(model)
    assert report.coverage["2.weight"].status == "exact"
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        assert report.coverage[name].status == "not measured"
        assert "eval mode" in report.coverage[name].reason
        assert "GroupNorm" in report.coverage[name].reason
    assert report.total.numel == 12


def test_a_loss_that_compares_samples_is_not_taken_for_a_layer_that_mixes():
    """The output's rows are what the samples add; a loss over pairs of them is the user's."""
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        output = model(samples())
        torch.cdist(output[:3], output[3:]).sum().backward()
        optimizer.step()
        assert {c.status for c in scope.last.coverage.values()} == {"exact"}


# -- the run goes on -----------------------------------------------------------------------------------------------------


def test_a_forward_without_a_backward_counts_for_nothing():
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        for _ in range(3):
            model(samples(4))
        window(model, optimizer)
        assert (scope.last.samples, scope.last.micro_steps) == (6, 1)


def test_an_exception_in_the_loop_leaves_the_scope_usable():
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        with pytest.raises(RuntimeError):
            model(torch.randn(3, 7).double())
        with pytest.raises(ZeroDivisionError):
            model(samples()).mean() / (1 // 0)
        window(model, optimizer)
        assert scope.last.samples == 6
        assert {c.status for c in scope.last.coverage.values()} == {"exact"}


def test_an_exception_closes_the_scope_of_a_with_statement():
    model = net()
    with pytest.raises(KeyError), gradscope.watch(model):
        raise KeyError("user")
    assert not any(module._forward_hooks for module in model.modules())


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, dtype=torch.float64))

    def forward(self, x):
        return x * self.weight


def rule_for(function):
    """A fresh layer type with this rule, between two layers."""
    layer = type("Own", (Own,), {"forward": lambda self, x: x * self.weight})
    gradscope.register_rule(layer, function)
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), layer(), nn.Linear(4, 2)).double()


def own_rule(module, inputs, grad):
    return {"weight": inputs[0] * grad}


def boom(module, inputs, grad):
    raise ZeroDivisionError("in a rule of the user")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (boom, "in a rule of the user"),
        (lambda module, inputs, grad: {}, "does not describe"),
        (lambda module, inputs, grad: None, ""),
        (lambda module, inputs, grad: {"weight": grad[:2]}, "expected 6"),
        (lambda module, inputs, grad: {"weight": grad[:, :2]}, "expected 6"),
        (lambda module, inputs, grad: {"weight": 3}, ""),
    ],
    ids=["raises", "nothing", "None", "too few samples", "wrong shape", "no tensor"],
)
def test_a_rule_that_fails_costs_only_its_own_parameter_and_is_said(rule, text):
    model = rule_for(rule)
    report = report_of(model)
    coverage = report.coverage
    assert {coverage[n].status for n in ("0.weight", "0.bias", "2.weight", "2.bias")} == {"exact"}
    assert coverage["1.weight"].status in ("estimated", "not measured")
    said = " ".join([coverage["1.weight"].reason, *report.warnings])
    assert text in said


def test_a_rule_that_is_wrong_is_a_mismatch_and_its_figures_and_totals_are_withheld():
    model = rule_for(lambda module, inputs, grad: {"weight": 1.01 * inputs[0] * grad})
    report = report_of(model)
    assert report.coverage["1.weight"].status == "mismatch"
    assert 0.002 < report.coverage["1.weight"].error < 0.05  # two random directions estimate 0.01
    assert math.isnan(report.total.trace_cov)
    assert "1.weight" in report.total.reason
    assert math.isfinite(report.layers["0"].trace_cov)


def test_a_rule_that_attributes_to_the_wrong_samples_is_seen_by_random_signs_alone():
    model = rule_for(lambda module, inputs, grad: {"weight": (inputs[0] * grad).roll(1, 0)})
    report = report_of(model)
    assert report.coverage["1.weight"].status == "mismatch"
    assert "wrong samples" in report.coverage["1.weight"].reason
    assert report.coverage["1.weight"].error < 1e-12


def test_a_right_rule_is_exact():
    model = rule_for(own_rule)
    report = report_of(model)
    assert (report.coverage["1.weight"].status, report.coverage["1.weight"].rule) == ("exact", "own_rule")


def test_registering_a_type_twice_or_nonsense_is_refused():
    with pytest.raises(DuplicateRuleError, match=r"Linear already has the rule 'linear'"):
        gradscope.register_rule(nn.Linear, own_rule)
    with pytest.raises(InvalidArgumentError, match="not a subclass"):
        gradscope.register_rule(nn.Linear(1, 1), own_rule)
    with pytest.raises(InvalidArgumentError, match="not callable"):
        gradscope.register_rule(type("Other", (nn.Module,), {}), "rule")


def test_a_subclass_that_changes_forward_does_not_get_the_closed_form():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x).relu()

    torch.manual_seed(0)
    model = nn.Sequential(Doubled(4, 3), nn.Linear(3, 1)).double()
    report = report_of(model)
    assert report.coverage["0.weight"].rule != "linear"
    assert report.coverage["0.weight"].status in ("exact", "estimated")


def test_a_stream_that_breaks_costs_only_its_lines():
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError("disk full")

    model = net()
    optimizer = sgd(model)
    good = io.StringIO()
    with gradscope.watch(model, optimizer) as scope:
        scope.log_to(Broken())
        scope.log_to(good)
        window(model, optimizer)
        window(model, optimizer)
        assert scope.report().windows == 2
        assert "disk full" in " ".join(scope.report().warnings)
        assert len(good.getvalue().splitlines()) == 2


def test_a_failure_while_a_window_closes_costs_only_that_window(monkeypatch):
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        window(model, optimizer)
        with monkeypatch.context() as patch:
            patch.setattr("gradscope.session.OpenWindow.close", lambda *args, **kwargs: 1 / 0)
            window(model, optimizer)
        window(model, optimizer)
        assert scope.report().windows == 2
        assert scope.last.samples == 6
        assert "ZeroDivisionError" in " ".join(scope.report().warnings)


def test_every_error_is_a_gradscope_error_and_says_what_to_do():
    for cls in vars(gradscope.errors).values():
        if isinstance(cls, type) and issubclass(cls, Exception):
            assert issubclass(cls, GradscopeError)


def test_a_model_without_a_call_of_its_own_is_measured_by_its_parts():
    """Only modules inside the watched one are called: no output of the whole to tag."""
    model = net()
    optimizer = sgd(model)
    with gradscope.watch(model, optimizer) as scope:
        x = samples()
        model[2](model[0](x).tanh()).square().mean().backward()
        optimizer.step()
        assert scope.last.samples == 6
        for coverage in scope.last.coverage.values():
            assert coverage.status == "exact"
            assert "assumed" in coverage.reason


def test_packed_sequences_end_no_run():
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 2, batch_first=True).double()
    optimizer = sgd(lstm)
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 2, 1]), batch_first=True)
    with gradscope.watch(lstm, optimizer) as scope:
        lstm(packed)[0].data.square().sum().backward()
        optimizer.step()
        assert {c.status for c in scope.last.coverage.values()} <= {"exact", "estimated", "not measured", "mismatch"}
        assert all(c.reason for c in scope.last.coverage.values() if c.status != "exact")


def hooked(model):
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


@pytest.mark.parametrize("version", ["2.9.1+cu128", "1.13", "2.6.0a0+git1234"])
def test_a_torch_that_is_too_old_is_refused_before_anything_is_hooked(version, monkeypatch):
    model = net()
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(UnsupportedTorchError, match=rf"torch {re.escape(version)} is installed.*needs 2\.10 or later"):
        gradscope.watch(model)
    assert not hooked(model)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0a0+git1234"])
def test_newer_releases_of_torch_are_taken(version, monkeypatch):
    model = net()
    monkeypatch.setattr(torch, "__version__", version)
    with gradscope.watch(model):
        assert hooked(model)
