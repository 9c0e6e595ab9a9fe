"""Every planted bug is caught and named; no right loop alarms. The full grid is benchmarks/checks_grid.py."""

import pytest
import torch

from gradscope.checks import CAUSES, AccumulationFailure, assert_accumulates, diagnose
from tests.checks.bugs import BUGS
from tests.checks.right_loops import RIGHT
from tests.checks.worlds import World

SCALES = (1e-8, 1e-4, 1.0, 1e3, 1e6)
DTYPES = (torch.float32, torch.bfloat16)


def settings(names):
    """Each loop once, at scales and dtypes that rotate: the whole grid is run by the benchmark."""
    return [
        pytest.param(name, SCALES[i % len(SCALES)], DTYPES[i // len(SCALES) % 2], id=name)
        for i, name in enumerate(names)
    ]


@pytest.mark.parametrize(("name", "scale", "dtype"), settings(BUGS))
def test_a_planted_bug_is_caught_and_named(name, scale, dtype):
    cause, kind, make, also = BUGS[name]
    world = World(scale=scale, dtype=dtype, kind=kind)
    step, loss_fn = make(world)
    with pytest.raises(AccumulationFailure) as failure:
        assert_accumulates(step, world.model, loss_fn, world.batch)
    diagnosis = failure.value.diagnosis
    assert diagnosis.cause == cause, diagnosis.evidence
    assert set(also) <= set(diagnosis.also)
    assert diagnosis.remedy
    assert all(line in str(failure.value) for line in diagnosis.evidence)


@pytest.mark.parametrize(("name", "scale", "dtype"), settings(RIGHT))
def test_a_right_loop_passes(name, scale, dtype):
    kind, make = RIGHT[name]
    world = World(scale=scale, dtype=dtype, kind=kind)
    step, loss_fn = make(world)
    assert_accumulates(step, world.model, loss_fn, world.batch)


def test_the_catalogue_plants_every_cause_that_depends_on_no_dtype():
    assert {cause for cause, *_ in BUGS.values()} | {"right", "unknown", "low precision"} == set(CAUSES)


def small_gradients(world):
    def step(model, micro_batches):
        for b in micro_batches:
            world.share(model, b, micro_batches).backward()

    return step


def test_bfloat16_gradients_that_lose_many_small_additions_are_low_precision():
    world = World(dtype=torch.bfloat16, samples=512)
    d = diagnose(small_gradients(world), world.model, world.mean, world.batch, split=[1] * 512)
    assert d.cause == "low precision"
    assert "bfloat16" in d.evidence[0]


def test_float16_gradients_that_underflow_are_low_precision():
    world = World(scale=1e-9, dtype=torch.float16)
    d = diagnose(small_gradients(world), world.model, world.mean, world.batch)
    assert d.cause == "low precision"
    assert "too small" in d.evidence[0]


def test_a_few_bfloat16_additions_are_right():
    world = World(dtype=torch.bfloat16)
    assert diagnose(small_gradients(world), world.model, world.mean, world.batch).right
