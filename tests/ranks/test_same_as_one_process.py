"""Ranks give the figures of one process that sees all their samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ranks.loops import Loop, all_of, one_process
from tests.ranks.processes import run

MICRO = ((2,), (3,), (1, 4))
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


@pytest.fixture(scope="module", params=[2, 3, 4])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[dict[str, Any]]]:
    count = request.param
    return count, run(all_of, count, tmp_path_factory.mktemp("ranks"), LOOPS)


@pytest.mark.parametrize("name", BY_NAME)
def test_figures_are_those_of_one_process_on_all_samples(world, name):
    count, found = world
    loop = BY_NAME[name]
    expected = one_process(loop, count)
    tolerance = 1e-5 if loop.dtype is torch.float32 else 1e-9
    for rank in range(count):
        assert len(found[rank][name]) == len(expected)
        for ours, truth in zip(found[rank][name], expected, strict=True):
            assert ours["samples"] == truth["samples"]
            assert ours["figures"].keys() == truth["figures"].keys()
            for unit, values in truth["figures"].items():
                assert ours["figures"][unit] == pytest.approx(values, rel=tolerance, abs=1e-12, nan_ok=True), unit
