"""Accelerate: the loop is the user's, steps are real only where gradients are synchronised."""

from dataclasses import replace

import pytest
import torch
from plain_loop import (
    WAYS,
    How,
    Run,
    assert_same_figures,
    assert_same_training,
    batches,
    build,
    hooks_on,
    loss_of,
    plain,
)

import gradscope

accelerate = pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState  # noqa: E402 - only where it is installed

from gradscope.integrations.accelerate import watch  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh_state():
    """It is global in accelerate."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def prepared(how, **settings):
    mixed = "bf16" if how.autocast == torch.bfloat16 else "no"
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=how.k, mixed_precision=mixed, **settings)
    # Mixed precision with float16 asks for a GPU; its scaler does not.
    accelerator.scaler = how.scaler
    model = build(how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    return accelerator, model, accelerator.prepare(model, optimizer, loader)


def train(how, *, watched=True, log_every=10, **settings):
    accelerator, bare, (model, optimizer, loader) = prepared(how, **settings)
    scope = watch(accelerator, model, optimizer, log_every=log_every, **how.options) if watched else None
    for i, letters in enumerate(loader):
        if i == 0:
            # Dropout draws what it draws in the plain loop.
            torch.manual_seed(1)
        with accelerator.accumulate(model):
            loss = loss_of(model(letters[:, :-1]), letters) * how.factor(i)
            accelerator.backward(loss)
            if accelerator.sync_gradients and how.clip:
                accelerator.clip_grad_norm_(model.parameters(), how.clip)
            optimizer.step()
            optimizer.zero_grad()
    if scope is not None:
        scope.close()
    return Run(scope.report(last=100) if watched else None, bare), scope


def way(name):
    """Where float16 was not asked for, accelerate clips without unscaling: a scaler comes without clipping here."""
    how = WAYS[name]
    return replace(how, clip=None) if how.scaled else how


@pytest.mark.parametrize("name", WAYS)
def test_figures_are_those_of_the_plain_loop(name):
    found, _ = train(way(name))
    expected = plain(way(name))
    assert_same_figures(found.report, expected.report)
    assert_same_training(found, expected)


def test_training_is_bitwise_the_same_unwatched():
    assert_same_training(train(How(k=4))[0], train(How(k=4), watched=False)[0])


def test_nothing_stays_behind():
    run, scope = train(How())
    assert hooks_on(run.model) == []
    assert "closed" in repr(scope)


def test_something_else_than_an_accelerator_is_refused():
    model = build(How())
    with pytest.raises(gradscope.GradscopeError, match=r"expected an accelerate\.Accelerator first, got Letters"):
        watch(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_figures_go_to_the_trackers_that_the_accelerator_has(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator, _, (model, optimizer, loader) = prepared(How(), log_with="tensorboard", project_dir=str(tmp_path))
    scope = watch(accelerator, model, optimizer, log_every=4)
    accelerator.init_trackers("run")
    for i, letters in enumerate(loader):
        accelerator.backward(loss_of(model(letters[:, :-1]), letters))
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"mine": float(i)}, step=i)
    scope.close()
    accelerator.end_training()
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.*")).parent)).Reload()
    found = events.Scalars("gradscope/noise_scale/total")
    assert [event.step for event in events.Scalars("gradscope/window")] == [4, 8, 9]
    assert found[-1].value == pytest.approx(scope.report().total.noise_scale, rel=1e-6)
    assert len(events.Scalars("mine")) == 9
