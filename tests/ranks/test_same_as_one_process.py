"""Ranks give the figures of one process that sees all their samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.ranks.loops import Loop, all_and_untouched, one_process
from tests.ranks.processes import run

MICRO = ((2,), (3,), (1, 4))
MIXED = Loop("sharded, mixed", wrap="fsdp", mixed=True, dtype=torch.float32, sizes=((8,),))
LOOPS = [
    Loop("plain"),
    Loop("float32", dtype=torch.float32),
    Loop("single-precision weights", weights=True, sizes=((4,), (2,))),
    Loop("inner", wrap="ddp, inner"),
    Loop("before", wrap="ddp, before"),
    Loop("no_sync", sizes=MICRO),
    Loop("synchronised each time", sizes=MICRO, synchronised=(True, True, True)),
    Loop("bucket view", wrapping={"gradient_as_bucket_view": True}, sizes=MICRO),
    Loop("bucket view, zeros", wrapping={"gradient_as_bucket_view": True}, sizes=MICRO, zero=False),
    Loop("static graph", wrapping={"static_graph": True}),
    Loop("unused", wrapping={"find_unused_parameters": True}, net="branches"),
    Loop("unused, no_sync", wrapping={"find_unused_parameters": True}, net="branches", sizes=MICRO),
    Loop("unequal", sizes=((2, 6, 3),)),
    Loop("none on one rank", sizes=((4, 0),)),
    Loop("zeros", zero=False),
    Loop("raw", net="raw"),
    Loop("moments", watching={"moments": True}),
    Loop("moments, no_sync", watching={"moments": True}, sizes=MICRO),
    Loop("gathered", watching={"gather_norms": True}, sizes=((2, 5),)),
    Loop("every other", watching={"every": 2}, steps=5),
    Loop("every other, micro-steps", watching={"every": 2}, steps=5, sizes=MICRO, synchronised=(True, True, True)),
    Loop("sharded", wrap="fsdp"),
    Loop("sharded, float32", wrap="fsdp", dtype=torch.float32),
    Loop("sharded, not resharded", wrap="fsdp", wrapping={"reshard_after_forward": False}),
    Loop("sharded, resharded", wrap="fsdp", wrapping={"reshard_after_forward": True}),
    Loop("sharded before", wrap="fsdp, before"),
    Loop("sharded, unequal", wrap="fsdp", sizes=((2, 6, 3),)),
    Loop("sharded, micro-steps", wrap="fsdp", sizes=MICRO),
    Loop("sharded, synchronised each time", wrap="fsdp", sizes=MICRO, synchronised=(True, True, True)),
    Loop("sharded, zeros", wrap="fsdp", sizes=MICRO, zero=False),
    Loop("sharded, raw", wrap="fsdp", net="raw"),
    Loop("sharded, gathered", wrap="fsdp", watching={"gather_norms": True}, sizes=((2, 5),)),
]
BY_NAME = {loop.name: loop for loop in LOOPS}

#: All with two processes; with more, those in which their number matters.
FEWER = [
    "float32",
    "no_sync",
    "unused, no_sync",
    "unequal",
    "none on one rank",
    "gathered",
    "sharded, float32",
    "sharded, zeros",
]
WORLDS = {2: list(BY_NAME), 3: FEWER, 4: FEWER}
TOUCHING = [
    "no_sync",
    "bucket view",
    "static graph",
    "unused",
    "moments",
    "sharded",
    "sharded, micro-steps",
    "sharded, mixed",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What each rank saw, by number of processes."""
    again = [BY_NAME.get(name, MIXED) for name in TOUCHING]
    results: dict[int, Any] = {}
    for count, names in WORLDS.items():
        loops = [BY_NAME[name] for name in names] + ([MIXED] if count == 2 else [])
        folder = tmp_path_factory.mktemp("ranks")
        results[count] = run(all_and_untouched, count, folder, loops, again if count == 2 else [])
    return results


def agree(ours: dict[str, Any], truth: dict[str, Any], tolerance: float, floor: float = 1e-12) -> None:
    assert ours["samples"] == truth["samples"]
    assert ours["figures"].keys() == truth["figures"].keys()
    for unit, values in truth["figures"].items():
        assert ours["figures"][unit] == pytest.approx(values, rel=tolerance, abs=floor, nan_ok=True), unit


@pytest.mark.parametrize(("count", "name"), [(count, name) for count, names in WORLDS.items() for name in names])
def test_figures_are_those_of_one_process_on_all_samples(found, count, name):
    loop = BY_NAME[name]
    expected = one_process(loop, count)
    for rank in range(count):
        windows = found[count][rank][0][name]
        assert len(windows) == len(expected)
        for ours, truth in zip(windows, expected, strict=True):
            agree(ours, truth, 1e-5 if loop.dtype is torch.float32 else 1e-9)


@pytest.mark.parametrize("name", ["gathered", "sharded, gathered"])
@pytest.mark.parametrize("rank", [0, 1])
def test_gathered_norms_are_those_of_all_samples_rank_by_rank(found, rank, name):
    for ours, truth in zip(found[2][rank][0][name], one_process(BY_NAME[name], 2), strict=True):
        assert ours["norms"] == pytest.approx(truth["norms"], rel=1e-9)


@pytest.mark.parametrize("name", ["no_sync", "sharded, micro-steps"])
@pytest.mark.parametrize("rank", [0, 1])
def test_norms_that_were_not_gathered_are_a_ranks_own_in_their_places(found, rank, name):
    loop = BY_NAME[name]
    own = sum(loop.size(step, rank) for step in range(len(loop.sizes)))
    before = sum(loop.size(step, 0) for step in range(len(loop.sizes))) * rank
    for ours, truth in zip(found[2][rank][0][name], one_process(loop, 2), strict=True):
        norms = torch.tensor(ours["norms"], dtype=torch.float64)
        expected = torch.full_like(norms, float("nan"))
        expected[before : before + own] = torch.tensor(truth["norms"], dtype=torch.float64)[before : before + own]
        torch.testing.assert_close(norms, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["moments", "moments, no_sync"])
def test_elementwise_figures_are_those_of_one_process(found, name):
    for ours, truth in zip(found[2][0][0][name], one_process(BY_NAME[name], 2), strict=True):
        assert ours["variance"].keys() == truth["variance"].keys()
        for parameter, variance in truth["variance"].items():
            torch.testing.assert_close(torch.tensor(ours["variance"][parameter]), torch.tensor(variance))
            assert ours["preconditioned"][parameter] == pytest.approx(truth["preconditioned"][parameter], nan_ok=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_mixed_precision_is_measured_exactly_up_to_its_rounding(found, rank):
    """The truth here is float32; what differs is the rounding of bfloat16 in the model itself."""
    truth = one_process(replace(MIXED, mixed=False), 2)
    for ours, one in zip(found[2][rank][0][MIXED.name], truth, strict=True):
        assert set(ours["status"].values()) == {"exact"}
        agree(ours, one, 0.1, 0.05 * one["figures"]["total"]["trace_cov"])


@pytest.mark.parametrize("name", TOUCHING)
@pytest.mark.parametrize("rank", [0, 1])
def test_watching_changes_no_bit_of_the_training(found, rank, name):
    assert found[2][rank][1][name]
