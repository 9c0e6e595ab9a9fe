"""What differs between ranks is said; nothing that happens on one of them hangs the others or passes for a figure."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gradscope
from tests.ranks import troubles
from tests.ranks.loops import record
from tests.ranks.processes import SECONDS, run


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every trouble left on each of two ranks; all ran one after another in the same processes."""
    folder = tmp_path_factory.mktemp("logs")
    return run(troubles.all_troubles, 2, tmp_path_factory.mktemp("ranks"), None, str(folder))


def said(report: dict[str, Any]) -> str:
    return "\n".join(report["warnings"])


def alone(rank: int, steps: int, *, first: int = 0) -> dict[str, Any]:
    """The newest window of one rank's samples, where parameters are trained by both."""
    models = [troubles.net() for _ in range(2)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    with gradscope.watch(models[rank], optimizers[rank]) as scope:
        for step in range(first, first + steps):
            for number, model in enumerate(models):
                model(troubles.data(number, step)).square().mean().backward()
            if step == first + steps - 1:
                optimizers[rank].step()
                return record(scope.report(last=1))
            means = [sum(p.grad for p in pair) / 2 for pair in zip(*(m.parameters() for m in models), strict=True)]
            for model, optimizer in zip(models, optimizers, strict=True):
                for parameter, mean in zip(model.parameters(), means, strict=True):
                    parameter.grad = mean.clone()
                optimizer.step()
                optimizer.zero_grad()
    raise AssertionError("no step")


def same(ours: dict[str, Any], truth: dict[str, Any]) -> bool:
    return all(
        ours["figures"][unit] == pytest.approx(values, rel=1e-9, nan_ok=True)
        for unit, values in truth["figures"].items()
    )


def together(steps: int) -> dict[str, Any]:
    """The newest window of both ranks' samples."""
    model = troubles.net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for step in range(steps):
            for rank in range(2):
                (model(troubles.data(rank, step)).square().mean() / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
        return record(scope.report(last=1))


@pytest.mark.parametrize("rank", [0, 1])
def test_after_all_that_went_wrong_an_ordinary_run_is_merged(found, rank):
    assert same(found[rank]["ordinary"], together(3))
    assert same(found[rank]["ordinary_again"], together(3))
    assert not found[rank]["ordinary_again"]["warnings"]


def test_a_rank_that_watches_alone_hangs_nobody_and_says_so(found):
    assert "not all ranks watch" in said(found[0]["watched_on_one"])
    assert same(found[0]["watched_on_one"], alone(0, 3))
    assert found[1]["watched_on_one"] is None


@pytest.mark.parametrize("trouble", ["watched_late", "other_settings"])
def test_ranks_that_watch_otherwise_show_their_own_samples_and_say_so(found, trouble):
    for rank in range(2):
        assert "not all ranks watch" in said(found[rank][trouble])
        assert same(found[rank][trouble], alone(rank, 3))


def test_a_rank_that_closes_its_scope_leaves_the_others_with_their_own_samples(found):
    assert all(same(found[rank]["closed_on_one"][0], together(2)) for rank in range(2))
    assert "a rank has closed its scope" in said(found[1]["closed_on_one"][1])
    assert same(found[1]["closed_on_one"][1], alone(1, 4))


@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_sums_fail_tells_all(found, rank, window):
    report = found[rank]["failing_hooks"][window]
    assert "gradscope failed on rank 1" in said(report)
    assert "rank 1: gradscope failed: RuntimeError: planted" in said(report)
    assert set(report["status"].values()) == {"not measured"}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_hooks_fail_tells_all(found, rank):
    assert "rank 1: gradscope failed inside a hook: RuntimeError: planted" in said(found[rank]["failing_layer"])


@pytest.mark.parametrize("trouble", ["skipped_on_one", "skipped_on_one_of_few"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_step_skipped_on_one_rank_is_named(found, rank, trouble):
    assert "ranks have stepped a different number of times" in said(found[rank][trouble])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_step_that_the_scaler_skips_on_all_ranks_drops_its_window(found, rank):
    windows = found[rank]["skipped_by_scaler"]
    assert [window["figures"] for window in windows[:2]] == [windows[0]["figures"]] * 2
    model = troubles.net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for step in (0, 2, 3):
            for number in range(2):
                (model(troubles.data(number, step)).square().mean() / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert same(windows[3], record(scope.report(last=1)))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("trouble", ["without_sync", "around_the_wrapper"])
def test_missing_synchronisation_is_named_and_figures_are_the_ranks_own(found, rank, trouble):
    assert "no backward of this window averaged the gradients of ranks" in said(found[rank][trouble])
    assert same(found[rank][trouble], alone(rank, 2))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_last_micro_step_under_no_sync_is_named_and_withheld(found, rank):
    report = found[rank]["last_without_sync"]
    assert "ranks step with different gradients" in said(report)
    assert set(report["status"].values()) == {"not measured"}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_parameter_that_is_not_averaged_is_named_and_withheld(found, rank):
    report = found[rank]["ignored_by_wrapper"]
    assert [name for name, status in report["status"].items() if status == "mismatch"] == ["2.bias"]
    assert "ranks hold different gradients of it" in report["reason"]["2.bias"]


@pytest.mark.parametrize("rank", [0, 1])
def test_models_that_nothing_averages_are_measured_alone(found, rank):
    assert "nothing that averages gradients was seen" in said(found[rank]["not_wrapped"])


@pytest.mark.parametrize("rank", [0, 1])
def test_join_is_left_to_itself(found, rank):
    assert "inside join()" in said(found[rank]["joined"])


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_rounded_on_their_way_are_named(found, rank):
    assert "gradients were rounded on their way between ranks" in said(found[rank]["compressed"])
    assert set(found[rank]["compressed"]["status"].values()) == {"exact"}


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_that_are_summed_are_measured_as_they_are(found, rank):
    assert "added, not averaged" in said(found[rank]["summed"])
    model = troubles.net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for step in range(2):
            for number in range(2):
                model(troubles.data(number, step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert same(found[rank]["summed"], record(scope.report(last=1)))


@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_that_are_not_what_ranks_computed_are_withheld(found, rank):
    report = found[rank]["falsified"]
    assert set(report["status"].values()) == {"mismatch"}
    assert report["figures"]["total"]["grad_sq"] != report["figures"]["total"]["grad_sq"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_may_call_the_model_more_often_than_others(found, rank):
    assert same(found[rank]["looked_aside"], together(5))


@pytest.mark.parametrize("rank", [0, 1])
def test_two_models_of_one_kind_are_told_apart(found, rank):
    first, second = found[rank]["two_models"]
    assert same(first, together(3))
    assert not second["warnings"]


@pytest.mark.parametrize("rank", [0, 1])
def test_local_and_reduced_gradients_estimate_the_noise_where_samples_are_not_seen(found, rank):
    """Four parts of equal weight: |G|² is the mean of their inner products, pair by pair."""
    model = troubles.net()
    parts = []
    for number in range(2):
        for part in range(2):
            model.zero_grad()
            model(troubles.data(number, part)).square().mean().backward()
            parts.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    pairs = [parts[i] @ parts[j] for i in range(4) for j in range(4) if i != j]
    mean = sum(parts) / 4
    signal = float(sum(pairs) / len(pairs))
    report = found[rank]["without_capture"][0]
    assert report["figures"]["total"]["grad_sq"] == pytest.approx(signal, rel=1e-9)
    assert report["figures"]["total"]["trace_cov"] == pytest.approx(16 * (float(mean @ mean) - signal), rel=1e-9)
    assert set(report["rule"].values()) == {"local and reduced gradients"}
    assert set(report["status"].values()) == {"estimated"}


@pytest.mark.parametrize("rank", [0, 1])
def test_one_micro_step_on_each_of_two_ranks_is_enough_for_an_estimate(found, rank):
    report = found[rank]["without_capture_at_once"]
    assert set(report["status"].values()) == {"estimated"}
    assert report["figures"]["total"]["trace_cov"] == report["figures"]["total"]["trace_cov"]


@pytest.mark.parametrize("rank", [0, 1])
def test_where_samples_of_a_rank_interact_no_estimate_is_made(found, rank):
    report = found[rank]["batch_norm"]
    assert report["status"]["0.weight"] == report["status"]["1.weight"] == "not measured"
    assert report["status"]["2.weight"] == "exact"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_scaler_with_sharded_parameters_changes_no_figure(found, rank):
    assert same(found[rank]["sharded_scaler"], together(2))


@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_parameters_need_their_layers(found, rank):
    assert "capture=False cannot work" in found[rank]["sharded_without_capture"]


@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_gradients_that_were_left_lying_are_withheld(found, rank):
    left, after = found[rank]["sharded_without_sync"]
    assert set(left["status"].values()) == {"not measured"}
    assert set(after["status"].values()) == {"mismatch"}


@pytest.mark.parametrize("rank", [0, 1])
def test_layers_that_are_split_over_ranks_are_refused(found, rank):
    assert "tensor parallelism" in found[rank]["split_layers"]


@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_parameters_of_a_layer_that_is_never_called_are_estimated(found, rank):
    report = found[rank]["never_called"]
    assert report["status"]["self_attn.out_proj.weight"] == "estimated"
    assert report["rule"]["self_attn.out_proj.weight"] == "local and reduced gradients"
    assert report["status"]["linear1.weight"] == "exact"


def test_one_rank_writes_for_all(found):
    assert [one["lines_and_files"] for one in found] == [(3, 4), (0, 4)]


@pytest.mark.parametrize("trouble", [troubles.killed, troubles.killed_after_backward], ids=lambda f: f.__name__)
def test_a_rank_that_dies_leaves_the_others_with_their_usual_error(tmp_path, trouble):
    found = run(trouble, 3, tmp_path, alive={0, 1})
    for text, seconds, report in found[:2]:
        assert "onnect" in text
        assert seconds < SECONDS / 2
        assert report is not None


def test_replicas_of_shards_are_merged_over_both_dimensions(tmp_path):
    model = troubles.net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for step in range(2):
            for number in range(4):
                (model(troubles.data(number, step)).square().mean() / 4).backward()
            optimizer.step()
            optimizer.zero_grad()
        expected = record(scope.report(last=1))
    for report in run(troubles.two_dimensions, 4, tmp_path):
        assert same(report, expected)
        assert report["norms"] == pytest.approx(expected["norms"], rel=1e-9)


def test_the_check_names_a_loss_that_two_real_ranks_average_twice(tmp_path):
    assert run(troubles.averaged_twice, 2, tmp_path) == ["averaged over ranks twice"] * 2
