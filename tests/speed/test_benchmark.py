"""The benchmark program: what it says of times, figures and tools that fail."""

import json
import math

import pytest
import torch

import gradscope
from benchmarks.speed import commands
from benchmarks.speed.clock import Clock, NoDeviceError, WallClock, clock_for
from benchmarks.speed.document import MissingPlaceError, empty, filled, write
from benchmarks.speed.growth import exponent, steeper
from benchmarks.speed.measure import measure
from benchmarks.speed.models import LARGE, MODELS
from benchmarks.speed.plan import plan
from benchmarks.speed.problem import Problem
from benchmarks.speed.ratios import ratios
from benchmarks.speed.results import append, compact, newest
from benchmarks.speed.timing import WARM_UP, enter, interleave
from benchmarks.speed.tools import TOOLS
from benchmarks.speed.tools.plain import Plain
from benchmarks.speed.tools.tool import WORK, Figures, Tool
from benchmarks.speed.truth import truth
from benchmarks.speed.verdict import judge, judge_estimates

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def right():
    return truth(MODELS["mlp"](CPU, tiny=True))


def build():
    return MODELS["mlp"](CPU, tiny=True)


class Ticking(Clock):
    """Takes as long as it is told to, whatever it runs; as a CUDA clock's time is not the wall's."""

    def __init__(self, script):
        self.script, self.settled = script, 0

    def seconds(self, function):
        function()
        return self.script.get(function.__name__ + type(function.__self__).__name__, 0.0)

    def settle(self):
        self.settled += 1


class Halved(Plain):
    """A tool that spoils the gradient."""

    def step(self):
        (self.problem.loss() / 2).backward()


class Broken(Plain):
    """A tool that fails."""

    def step(self):
        raise TypeError("cannot do\n  this")


# -- times ------------------------------------------------------------------------------------------------------------


def test_ratios_are_of_the_same_rounds():
    found = ratios([1.0, 2.0, 4.0, 1.0], [2.0, 2.0, 6.0, 4.0])
    assert (found.low, found.median, found.high) == (1.375, 1.75, 2.5)
    assert found.mean == 14 / 8
    assert found.runs == 4


def test_ratios_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no round"):
        ratios([], [])


def test_a_clock_of_its_own_kind_is_all_that_a_device_needs(right):
    slow = type("Slow", (Plain,), {})
    contestants = [
        enter("plain", TOOLS["plain"], build, right),
        enter("slow", Tool("slow", "less", slow), build, right),
    ]
    clock = Ticking({"whole_stepPlain": 2.0, "whole_stepSlow": 3.0})
    assert interleave(contestants, 6, clock, limit=60) == 6
    assert [each.seconds for each in contestants] == [[2.0] * 6, [3.0] * 6]
    assert clock.settled == 2 * (6 + WARM_UP)


def test_what_a_tool_puts_off_is_shared_out_among_its_steps(right):
    contestant = enter("plain", TOOLS["plain"], build, right)
    interleave([contestant], 20, Ticking({"whole_stepPlain": 2.0, "settlePlain": 16.0}), limit=60)
    assert contestant.seconds == [3.0] * 16 + [6.0] * 4


def test_a_device_that_is_not_here_is_said_at_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert isinstance(clock_for(CPU), WallClock)
    with pytest.raises(NoDeviceError, match=r"asked for cuda.*no such device.*make bench"):
        clock_for(torch.device("cuda"))
    assert commands.main(["time", "--model", "mlp", "--device", "cuda"]) == 2
    assert "asked for cuda" in capsys.readouterr().err


# -- figures ----------------------------------------------------------------------------------------------------------


def test_truth_is_the_references():
    problem = build()
    exact = Problem(problem.model.double(), (problem.inputs[0].double(),), problem.targets)
    reference = gradscope.reference.per_sample_gradients(
        exact.model, lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
        (exact.inputs[0], exact.targets),
    )  # fmt: skip
    found = truth(exact)
    for name, gradients in reference.items():
        torch.testing.assert_close(found.norms[name], gradients.flatten(1).norm(dim=1))
        torch.testing.assert_close(found.variance[name], gradients.var(0))
        torch.testing.assert_close(found.grad[name], gradients.mean(0))


def test_right_figures_are_exact(right):
    verdict = judge(Figures(norms=right.norms), dict(right.grad), right)
    assert (verdict.status, verdict.measured, verdict.parameters) == ("exact", 6, 6)


def test_one_wrong_norm_is_wrong(right):
    norms = dict(right.norms)
    norms["2.weight"] = norms["2.weight"] * torch.tensor([1.1] + [1.0] * 7, dtype=torch.float64)
    verdict = judge(Figures(norms=norms), dict(right.grad), right)
    assert verdict.status == "wrong"
    assert verdict.reason.startswith("norms of 2.weight: off by")


def test_a_figure_per_token_is_wrong(right):
    verdict = judge(Figures(norms={"0.bias": torch.ones(80)}), dict(right.grad), right)
    assert verdict.reason == "norms of 0.bias: not one per sample"


def test_samples_left_out_are_not_held_against_a_tool(right):
    norms = {name: each.clone() for name, each in right.norms.items()}
    for each in norms.values():
        each[2:] = math.nan
    assert judge(Figures(norms=norms), dict(right.grad), right).status == "exact"


def test_a_tool_that_spoils_the_gradient_is_wrong_and_not_timed(right):
    contestant = enter("halved", Tool("halved", "less", Halved), build, right)
    assert contestant.verdict.status == "wrong"
    assert contestant.verdict.reason.startswith(".grad of")
    assert not contestant.runs


def test_a_tool_that_fails_is_a_line_with_its_reason(right):
    contestant = enter("broken", Tool("broken", "norms", Broken), build, right)
    assert (contestant.verdict.status, contestant.verdict.reason) == ("not run", "TypeError: cannot do this")


def test_a_tool_that_is_not_installed_is_a_line_with_its_reason(right):
    contestant = enter("x", Tool("x", "norms", Plain, needs=("no_such_package",)), build, right)
    assert contestant.verdict.reason == "not installed"


def test_a_tool_without_figures_is_not_timed(right):
    assert enter("x", Tool("x", "norms", Plain), build, right).verdict.reason == "gives no figures per sample"


def test_estimates_are_right_in_the_mean(right):
    true = right.trace_cov
    spread = [true * (1 + off) for off in (-0.5, 0.4, -0.2, 0.35, -0.05)]
    assert judge_estimates(spread, right).status == "estimate"
    assert judge_estimates([1.5 * value for value in spread for _ in range(20)], right).status == "wrong"


# -- models and tools -------------------------------------------------------------------------------------------------

OURS = ["scope", "scope-moments", "scope-quarter", "scope-every", "signs", "loop", "vmap-norms"]


@pytest.mark.parametrize("model", ["mlp", "depthwise", "gpt", "lstm"])
def test_what_torch_alone_can_measure_is_right(model):
    lines = {line["tool"]: line for line in measure(model, MODELS[model], OURS, CPU, rounds=4, tiny=True)}
    assert {name: lines[name]["status"] for name in OURS} == {
        **dict.fromkeys(OURS, "exact"),
        "signs": "estimate",
    }, [line["reason"] for line in lines.values()]
    assert all(line["ratios"]["runs"] == 4 for line in lines.values())
    assert json.loads(json.dumps(list(lines.values())))


@pytest.mark.parametrize("model", list(LARGE))
def test_models_for_a_gpu_run_on_the_cpu_when_tiny(model):
    for name in LARGE[model].needs:
        pytest.importorskip(name)
    lines = {line["tool"]: line for line in measure(model, LARGE[model], ["scope", "loop"], CPU, rounds=1, tiny=True)}
    assert lines["plain"]["status"] == "none"
    assert lines["loop"]["status"] == "exact", lines["loop"]["reason"]
    assert lines["scope"]["status"] == "exact", lines["scope"]["reason"]


def test_every_tool_belongs_to_a_kind_of_work():
    assert {tool.work for tool in TOOLS.values()} == set(WORK)
    assert all(TOOLS[tool.against].work == "plain" for tool in TOOLS.values())


def test_the_plan_measures_every_tool_on_every_model_once():
    common = ["--threads", "2"]
    commands_ = list(plan(MODELS, list(TOOLS), limit=90, common=common, memory=True, growth=False))
    for kind in ("time", "memory"):
        pairs = [(each[2], tool) for each in commands_ if each[0] == kind for tool in each[4].split(",")]
        assert len(pairs) == len(set(pairs)) == len(MODELS) * len(TOOLS)


# -- growth, results, document ----------------------------------------------------------------------------------------


def test_growth_is_the_power_over_the_upper_half():
    sizes = [1, 2, 4, 8, 16]
    assert exponent(sizes, [9.0, 9.0, 16.0, 64.0, 256.0]) == pytest.approx(2.0)
    assert math.isnan(exponent([4], [1.0]))


def test_what_grows_faster_than_the_step_is_named_only_where_it_matters():
    sizes, plain = [1, 2, 4, 8], [1.0, 2.0, 4.0, 8.0]
    assert steeper(sizes, plain, [1 + 0.1 * size for size in sizes]) == pytest.approx((1.0, 2.0, True))
    assert steeper(sizes, plain, [1.2] * 4) == pytest.approx((1.0, 1.0, False))
    assert not steeper(sizes, plain, [1 + 0.01 * size for size in sizes])[2]


def test_the_newest_result_counts(tmp_path):
    path = tmp_path / "new" / "lines"
    append(path, [{"kind": "time", "model": "a", "tool": "b", "error": 1}])
    append(path, [{"kind": "time", "model": "a", "tool": "b", "error": 2}])
    assert newest(path, "time", "model", "tool")["a", "b"]["error"] == 2
    compact(path)
    assert len(path.read_text().splitlines()) == 1


def test_a_document_is_filled_again_and_again():
    once = filled(empty(["x"]) + "kept\n", {"x": "| 1 |"})
    assert filled(once, {"x": "| 1 |"}) == once
    assert "| 2 |" in filled(once, {"x": "| 2 |"})
    assert "kept" in once
    with pytest.raises(MissingPlaceError, match="0 places"):
        filled("nothing", {"x": ""})


def test_tables_and_pictures_are_written_from_results(tmp_path):
    results = tmp_path / "lines"
    common = ["--tiny", "--threads", "1", "--results", str(results)]
    assert commands.main(["time", "--model", "mlp", "--tools", "scope,loop,cockpit", "--rounds", "2", *common]) == 0
    assert commands.main(["growth", "--axis", "mlp-width", "--tools", "scope", "--rounds", "1", *common]) == 0
    document, ratios_picture, growth_picture = write(results, MODELS, tmp_path / "speed.md")
    text = document.read_text()
    assert "MLP 784-512-512-10, n 128" in text
    assert "| gradscope |" in text
    assert "Cockpit, economy, not run" in text
    assert ratios_picture.read_text().startswith("<svg")
    assert growth_picture.read_text().count("<polyline") == 1
