"""From windows to a report: every figure against per-sample gradients that are written out here."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from gradscope.coverage import Coverage
from gradscope.statistics.elementwise import elementwise_moments
from gradscope.statistics.preconditioned import preconditioned_sums
from gradscope.summary import summarise
from gradscope.window import ParameterInfo, ParameterSums, Window

EXACT = Coverage("exact", "linear", "", 1e-8)
ESTIMATED = Coverage("estimated", "random signs")
SILENT = Coverage("no gradient", "", "nothing reached it")
MISMATCH = Coverage("mismatch", "linear", "the captured contributions are 30 % off", 0.3)
UNMEASURED = Coverage("not measured", "", "it mixes samples")
NAMES = ("embed.weight", "blocks.0.fc.weight", "blocks.0.fc.bias", "blocks.1.fc.weight", "scale")
SHAPES = {name: (size,) for name, size in zip(NAMES, (4, 6, 2, 6, 1), strict=True)}


def infos(names=NAMES):
    return [ParameterInfo(n, n.rpartition(".")[0], SHAPES[n][0], SHAPES[n]) for n in names]


def gradients(n=8, seed=0):
    """Per-sample gradients ``gᵢ`` of every parameter."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(n, *SHAPES[name], generator=generator, dtype=torch.float64) + 1 for name in NAMES}


def window(g, index=1, weights=None, coverage=None, moments=False, **given):
    """The window that these gradients make; a parameter whose coverage is not a measured one has no sums."""
    n = len(next(iter(g.values())))
    w = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else weights
    coverage = dict.fromkeys(g, EXACT) | (coverage or {})
    v2 = float(w.square().sum())
    sums = {name: one_sum(g[name], w, v2, coverage[name], moments) for name in g if coverage[name].measured}
    return Window(index, n, 2, v2, sums, coverage, weights=w, **given)


def one_sum(g, w, v2, coverage, moments):
    h = w[:, None] * g
    norms = None if coverage.status == "estimated" else h.square().sum(1)
    first, second = float(h.sum(0).square().sum()), float(h.square().sum())
    if not moments:
        return ParameterSums(first, second, norms)
    variance, signal = elementwise_moments(h.sum(0), h.square().sum(0), v2, len(g))
    scale = 1 / (1 + torch.arange(g.shape[1], dtype=torch.float64))
    return ParameterSums(first, second, norms, variance, signal, preconditioned_sums(variance, signal, scale))


def flat(g, names=NAMES):
    return torch.cat([g[name] for name in names], 1)


def several(count=6, **given):
    return [window(gradients(seed=t), t + 1, **given) for t in range(count)]


def noise(g):
    return float(g.var(0).sum())


def signal(g):
    return float(g.mean(0).square().sum()) - noise(g) / len(g)


def test_the_figures_of_one_window_are_those_of_its_gradients():
    g = gradients()
    report = summarise(infos(), [window(g)])
    for name, stats in {**report.parameters, "total": report.total}.items():
        expected = flat(g) if name == "total" else g[name]
        assert stats.name == name
        assert stats.numel == expected.shape[1]
        assert stats.grad_norm == pytest.approx(float(expected.mean(0).norm()), rel=1e-12)
        assert stats.trace_cov == pytest.approx(noise(expected), rel=1e-9)
        assert stats.grad_sq == pytest.approx(signal(expected), rel=1e-9)
        assert stats.snr == pytest.approx(signal(expected) / (noise(expected) / 8), rel=1e-9)
        assert stats.diversity == pytest.approx(
            float(expected.square().sum() / expected.sum(0).square().sum()), rel=1e-9
        )
        assert_close(stats.sample_norms, expected.norm(dim=1), rtol=1e-12, atol=0)


def test_a_layer_sums_its_parameters_and_a_group_its_layers():
    g = gradients()
    report = summarise(infos(), [window(g)])
    fc = flat(g, ["blocks.0.fc.weight", "blocks.0.fc.bias"])
    assert list(report.layers) == ["embed", "blocks.0.fc", "blocks.1.fc", ""]
    assert report.layers["blocks.0.fc"].trace_cov == pytest.approx(noise(fc), rel=1e-9)
    assert_close(report.layers["blocks.0.fc"].sample_norms, fc.norm(dim=1))
    assert report.layers[""].numel == 1
    assert [list(level) for level in report.groups] == [["embed", "blocks.0", "blocks.1", ""], list(report.layers)]
    assert report.groups[0]["blocks.0"].trace_cov == report.layers["blocks.0.fc"].trace_cov


@pytest.mark.parametrize(
    ("layers", "levels"),
    [
        (["0", "2"], [["0", "2"]]),
        (
            ["h.0.attn.q", "h.0.mlp", "ln"],
            [["h.0", "ln"], ["h.0.attn", "h.0.mlp", "ln"], ["h.0.attn.q", "h.0.mlp", "ln"]],
        ),
        (["stage.0.1.conv", "stage.0.2.conv"], [["stage.0.1", "stage.0.2"], ["stage.0.1.conv", "stage.0.2.conv"]]),
        (["a", "a.b"], [["a"], ["a", "a.b"]]),
        ([""], [[""]]),
    ],
    ids=str,
)
def test_layers_fold_into_their_ancestors_and_a_containers_index_stays_with_it(layers, levels):
    parameters = [ParameterInfo(f"{layer}.w", layer, 2, (2,)) for layer in layers]
    g = {info.name: torch.randn(4, 2, dtype=torch.float64) for info in parameters}
    report = summarise(parameters, [window(g)])
    assert [list(level) for level in report.groups] == levels
    assert report.groups[-1] == report.layers


def test_several_windows_average_noise_and_signal_and_divide_the_means():
    windows = several()
    report = summarise(infos(), windows)
    drawn = [flat(gradients(seed=t)) for t in range(6)]
    trace, grad_sq = sum(map(noise, drawn)) / 6, sum(map(signal, drawn)) / 6
    assert report.total.trace_cov == pytest.approx(trace, rel=1e-9)
    assert report.total.grad_sq == pytest.approx(grad_sq, rel=1e-9)
    assert report.total.resolved
    assert report.total.noise_scale == pytest.approx(trace / grad_sq, rel=1e-9)
    assert report.total.grad_norm == pytest.approx(float(drawn[-1].mean(0).norm()), rel=1e-12)
    assert report.total.history == pytest.approx([noise(g) / signal(g) for g in drawn], rel=1e-9)
    low, high = report.total.noise_scale_interval
    assert low < report.total.noise_scale < high
    assert (report.windows, report.samples, report.micro_steps) == (6, 48, 12)
    assert (report.first_window, report.last_window) == (1, 6)
    assert (report.window_samples, report.window_micro_steps) == (8, 2)


def test_one_window_is_resolved_by_its_signal_alone():
    report = summarise(infos(), several(1))
    assert report.total.resolved
    assert report.total.noise_scale == pytest.approx(report.total.trace_cov / report.total.grad_sq)
    assert report.total.noise_scale_interval == (0, math.inf)
    assert report.verdict == "no verdict yet: 1 of the 5 windows that an interval needs"


@pytest.mark.parametrize("count", [2, 4])
def test_below_five_windows_there_are_figures_but_no_interval_and_no_verdict(count):
    report = summarise(infos(), several(count))
    assert report.total.trace_cov > 0
    assert report.total.noise_scale_interval == (0, math.inf)
    assert not report.total.resolved
    assert math.isnan(report.total.noise_scale)
    assert report.total.reason == f"not resolved: {count} of the 5 windows that an interval needs"
    assert report.verdict == f"no verdict yet: {count} of the 5 windows that an interval needs"


def test_a_negative_signal_stays_and_is_not_resolved():
    g = {"scale": torch.tensor([[1.0], [-1.0]], dtype=torch.float64)}
    stats = summarise(infos(["scale"]), [window(g)]).total
    assert stats.grad_sq == -1
    assert stats.trace_cov == 2
    assert stats.snr == -1
    assert math.isnan(stats.noise_scale)
    assert not stats.resolved
    assert stats.reason == "not resolved: the mean |G|² is not positive"


def test_unequal_weights_count_as_they_do_in_the_gradient():
    g, w = gradients(4), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    report = summarise(infos(), [window(g, weights=w)])
    products, weights = flat(g) @ flat(g).T, w[:, None] * w
    apart = ~torch.eye(4, dtype=torch.bool)
    assert report.total.grad_sq == pytest.approx(
        float((weights * products)[apart].sum() / weights[apart].sum()), rel=1e-9
    )
    assert_close(report.total.sample_norms, flat(g).norm(dim=1), rtol=1e-12, atol=0)


def test_permuting_the_samples_permutes_their_norms_and_changes_nothing_else():
    g, order = gradients(), torch.randperm(8)
    one, other = (summarise(infos(), [window(x)]).total for x in (g, {name: g[name][order] for name in g}))
    assert_close(other.sample_norms, one.sample_norms[order])
    assert (other.trace_cov, other.grad_sq) == pytest.approx((one.trace_cov, one.grad_sq), rel=1e-9)


def test_parameters_without_figures_by_sample_count_in_the_sums_and_not_in_the_norms():
    g = gradients()
    report = summarise(infos(), [window(g, coverage={"scale": ESTIMATED})])
    assert report.parameters["scale"].sample_norms is None
    assert report.total.trace_cov == pytest.approx(noise(flat(g)), rel=1e-9)
    assert_close(report.total.sample_norms, flat(g, NAMES[:-1]).norm(dim=1))


def test_a_mismatch_withholds_the_parameter_and_every_total_that_includes_it():
    windows = several(5)
    windows.insert(2, window(gradients(), 9, coverage={"blocks.0.fc.bias": MISMATCH}))
    report = summarise(infos(), windows)
    withheld = [
        report.parameters["blocks.0.fc.bias"], report.layers["blocks.0.fc"], report.groups[0]["blocks.0"], report.total
    ]  # fmt: skip
    for stats in withheld:
        figures = (stats.grad_norm, stats.trace_cov, stats.grad_sq, stats.noise_scale, stats.snr, stats.diversity)
        assert all(map(math.isnan, figures))
        assert stats.sample_norms is None
        assert not stats.resolved
        assert "blocks.0.fc.bias" in stats.reason
    assert report.coverage["blocks.0.fc.bias"] == MISMATCH
    assert report.parameters["blocks.0.fc.weight"].trace_cov > 0
    assert report.layers["blocks.1.fc"].trace_cov > 0
    assert report.verdict.startswith("no verdict: withheld")
    assert "blocks.0.fc.bias" in report.warnings[0]


def test_what_was_not_measured_is_in_no_figure_and_in_coverage():
    g = gradients()
    report = summarise(infos(), [window(g, coverage={"scale": UNMEASURED})])
    assert "scale" not in report.parameters
    assert "" not in report.layers
    assert report.coverage["scale"] == UNMEASURED
    assert report.total.numel == 18
    assert report.parameter_count == 19
    assert report.total.trace_cov == pytest.approx(noise(flat(g, NAMES[:-1])), rel=1e-9)


def test_frozen_parameters_do_not_count_as_parameters_that_require_a_gradient():
    report = summarise(infos(), [window(gradients(), coverage={"embed.weight": Coverage("frozen")})])
    assert report.parameter_count == 15


def test_nothing_measured_says_why():
    coverage = dict.fromkeys(NAMES, UNMEASURED)
    report = summarise(infos(), [window(gradients(), coverage=coverage)])
    assert report.total.numel == 0
    assert math.isnan(report.total.trace_cov)
    assert report.total.reason == "no parameter was measured: it mixes samples"
    assert report.verdict == "no verdict: no parameter was measured: it mixes samples"


def test_a_parameter_that_nothing_reached_contributes_zero():
    g, others = gradients(), gradients(seed=1)
    zero = g | {"scale": torch.zeros(8, 1, dtype=torch.float64)}
    known = summarise(infos(), [window(zero, 1), window(others, 2)])
    silent = summarise(infos(), [window(g, 1, coverage={"scale": SILENT}), window(others, 2)])
    for name in ("scale", "blocks.0.fc.bias"):
        assert silent.parameters[name].trace_cov == pytest.approx(known.parameters[name].trace_cov, rel=1e-12)
    assert silent.total.trace_cov == pytest.approx(known.total.trace_cov, rel=1e-12)
    assert silent.warnings == ()


def test_a_window_that_measured_other_parameters_is_in_no_mean_that_it_would_distort():
    first, second = gradients(), gradients(seed=1)
    report = summarise(infos(), [window(first, 1, coverage={"scale": UNMEASURED}), window(second, 2)])
    assert report.total.trace_cov == pytest.approx(noise(flat(second)), rel=1e-9)
    expected = (noise(first["embed.weight"]) + noise(second["embed.weight"])) / 2
    assert report.parameters["embed.weight"].trace_cov == pytest.approx(expected, rel=1e-9)
    assert report.warnings == ("the measured parameters changed: the totals leave out window 1",)


def test_a_parameter_that_the_newest_window_lacks_is_left_out_and_named():
    report = summarise(infos(), [window(gradients(), 1), window(gradients(), 2, coverage={"scale": UNMEASURED})])
    assert "scale" not in report.parameters
    assert "scale: measured before, but not in window 2, so left out" in report.warnings


def test_a_window_of_one_sample_has_nan_figures_and_the_reason():
    report = summarise(infos(), [window(gradients(1))])
    assert math.isnan(report.total.trace_cov)
    assert math.isnan(report.total.noise_scale)
    assert report.total.reason == "a window of one sample shows no variance"
    assert report.total.grad_norm > 0
    assert_close(report.total.sample_norms, flat(gradients(1)).norm(dim=1))
    assert report.verdict == "no verdict: a window of one sample shows no variance"


def test_a_window_of_one_sample_stays_out_of_means_and_intervals():
    windows = several()
    with_one = [*windows[:3], window(gradients(1), 7), *windows[3:]]
    one, other = summarise(infos(), with_one), summarise(infos(), windows)
    assert one.total.trace_cov == pytest.approx(other.total.trace_cov, rel=1e-12)
    assert one.total.noise_scale_interval == pytest.approx(other.total.noise_scale_interval, rel=1e-12)
    assert math.isnan(one.total.history[3])
    assert one.samples == 49
    assert "one sample has all the weight in window 7: counted, but in no mean and no interval" in one.warnings


def test_the_newest_windows_one_sample_leaves_the_means_and_says_why_snr_is_missing():
    stats = summarise(infos(), [*several(), window(gradients(1), 7)]).total
    assert stats.noise_scale > 0
    assert math.isnan(stats.snr)
    assert stats.reason == "newest window: a window of one sample shows no variance"


def test_a_sample_that_is_not_finite_is_named_and_the_others_keep_their_norms():
    g = gradients()
    g["embed.weight"][3] = math.nan
    report = summarise(infos(), [*several(), window(g, 7, ids=tuple("abcdefgh"))])
    assert report.total.sample_norms.isnan().tolist() == [i == 3 for i in range(8)]
    assert "window 7: not finite in sample #3 (d)" in report.warnings
    assert any("the gradient is not finite in window 7" in line for line in report.warnings)
    assert report.total.trace_cov == pytest.approx(summarise(infos(), several()).total.trace_cov, rel=1e-12)
    assert report.parameters["scale"].trace_cov > 0
    alone = summarise(infos(), [window(g)])
    assert alone.total.reason == "the gradient is not finite"
    assert alone.parameters["scale"].trace_cov == pytest.approx(noise(g["scale"]), rel=1e-9)


def test_a_gradient_that_is_zero_has_no_noise_scale_and_says_so():
    stats = summarise(infos(["scale"]), [window({"scale": torch.zeros(4, 1, dtype=torch.float64)})]).total
    assert (stats.trace_cov, stats.grad_sq, stats.grad_norm) == (0, 0, 0)
    assert math.isnan(stats.noise_scale)
    assert stats.reason == "the gradient is zero"


def test_samples_that_were_not_chosen_are_nan_and_no_one_is_blamed():
    g = gradients()
    found = window(g)
    for sums in found.parameters.values():
        sums.sample_sq_norms[[0, 2, 4, 5]] = math.nan
    report = summarise(infos(), [found])
    assert report.total.sample_norms.isnan().sum() == 4
    assert report.warnings == ()


def test_the_samples_that_stand_out_have_their_ids():
    g = gradients()
    g["embed.weight"][5] *= 100
    report = summarise(infos(), [window(g, ids=tuple("abcdefgh"))])
    first = report.total.worst[0]
    norms = report.total.sample_norms
    assert (first.index, first.id) == (5, "f")
    assert first.ratio == pytest.approx(float(norms[5] / norms.quantile(0.5)))
    assert report.layers["embed"].worst[0].index == 5
    assert 5 not in [one.index for one in report.layers["blocks.1.fc"].worst]


def test_what_a_window_noted_stands_in_where_its_norms_were_let_go():
    found = window(
        gradients(), coverage=dict.fromkeys(NAMES, ESTIMATED), worst={None: ((3, 9.4),), "embed": ((1, 2.5),)}
    )
    report = summarise(infos(), [found])
    assert [(one.index, one.ratio) for one in report.total.worst] == [(3, 9.4)]
    assert [one.index for one in report.layers["embed"].worst] == [1]
    assert report.layers["blocks.1.fc"].worst == ()


def test_elementwise_figures_appear_with_moments_only():
    g = gradients()
    plain, report = (summarise(infos(), [window(g, moments=moments)]) for moments in (False, True))
    assert plain.total.gsnr is None
    assert plain.parameters["embed.weight"].variance is None
    assert plain.total.preconditioned_noise_scale is None
    assert_close(report.parameters["embed.weight"].variance, g["embed.weight"].var(0), rtol=1e-9, atol=0)
    assert report.layers["embed"].variance is None
    every = flat(g)
    elements = (every.mean(0).square() - every.var(0) / 8) / every.var(0)
    assert report.total.gsnr == pytest.approx(float(elements.mean()), rel=1e-9)


def test_the_preconditioned_noise_scale_is_a_ratio_of_means_over_windows_and_sums_over_parameters():
    report = summarise(infos(), several(3, moments=True))
    trace = quadratic = 0.0
    for t in range(3):
        for g in gradients(seed=t).values():
            scale = 1 / (1 + torch.arange(g.shape[1], dtype=torch.float64))
            trace += float((scale * g.var(0)).sum())
            quadratic += float((scale * (g.mean(0).square() - g.var(0) / 8)).sum())
    assert report.total.preconditioned_noise_scale == pytest.approx(trace / quadratic, rel=1e-9)


def test_before_the_first_window_the_report_is_empty_and_says_so():
    report = summarise(infos(), [], warnings=["look here"])
    assert report.verdict == "no window has been measured yet"
    assert (report.windows, report.samples, report.first_window, report.last_window) == (0, 0, 0, 0)
    assert report.parameters == report.layers == {}
    assert math.isnan(report.total.trace_cov)
    assert report.warnings == ("look here",)
    assert report.parameter_count == 19


def test_notices_are_told_once_with_their_windows():
    windows = [window(gradients(seed=t), t + 1, notices=("scale changed",) if t != 1 else ()) for t in range(3)]
    report = summarise(infos(), windows, warnings=("first",), overhead=0.14)
    assert report.warnings == ("first", "windows 1, 3: scale changed")
    assert report.overhead == 0.14


def test_estimated_parameters_do_not_raise_a_warning_of_heavy_tails():
    def drawn(t, coverage):
        spiky = {name: g * (30.0 if t % 4 == 0 and name == "scale" else 1.0) for name, g in gradients(seed=t).items()}
        return window(spiky, t + 1, coverage=coverage)

    exact = summarise(infos(), [drawn(t, None) for t in range(12)])
    estimated = summarise(infos(), [drawn(t, {"scale": ESTIMATED}) for t in range(12)])
    assert any("heavy tails" in line for line in exact.warnings)
    assert not any("heavy tails" in line for line in estimated.warnings)


def test_every_report_can_be_written_as_json_and_text():
    g = gradients()
    mixed = [*several(5, moments=True), window(g, 6, coverage={"scale": MISMATCH})]
    for windows in ([], several(1), several(), mixed, [window(gradients(1))]):
        report = summarise(infos(), windows)
        json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"JSON holds {name}"))
        assert report.verdict.split(":")[0] in report.render(120).replace("\n", " ")
