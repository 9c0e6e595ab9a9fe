"""Whether a training step's accumulated gradient is that of the whole minibatch, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from gradscope.checks.causes import Finding, find_causes
from gradscope.checks.causes.finding import largest
from gradscope.checks.describe import described
from gradscope.checks.diagnosis import Diagnosis
from gradscope.checks.failures import AccumulationFailure
from gradscope.checks.judge import Judged
from gradscope.checks.low_precision import low_precision
from gradscope.checks.message import accumulation_message
from gradscope.checks.precision import is_wide, rounding
from gradscope.checks.remedies import REMEDIES
from gradscope.checks.splits import Sizes, default_splits, given_splits, smallest_batch
from gradscope.checks.state import Companions
from gradscope.checks.trial import Conditions, Step, Trial
from gradscope.checks.truth import LossFn
from gradscope.errors import InvalidArgumentError
from gradscope.reference import sample_count

_CALMER = ("as is", "no dropout", "eval")
_RANDOM = Diagnosis(
    "random",
    evidence=("the gradient of loss_fn over the same batch changes with the random state, even in eval mode.",),
    remedy=REMEDIES["random"],
    error=float("nan"),
)


def assert_accumulates(
    step: Step,
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    *,
    split: Sequence[int] | Sequence[Sequence[int]] | None = None,
    windows: int | None = None,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    rtol: float | None = None,
) -> None:
    """Require that ``step`` accumulates the gradient of ``loss_fn`` over the whole effective minibatch.

    The step is run on several splits of the batch, in float64 where it can be, and every gradient it accumulates is
    compared with that of the loss over all samples of the window. One transform at the end (clipping, dividing,
    unscaling) is right. Afterwards parameters, ``.grad``, buffers, modes, random state, optimizers, schedulers and
    scalers are as before; what else the step changes (its own counters, say) is not put back.

    Args:
        step: ``step(model, micro_batches)``: the accumulation code for one window, for a list of any length.
        model: the module that the step trains; always this same object.
        loss_fn: ``loss_fn(model, batch)``: the loss that is meant for the whole effective minibatch.
        batch: any nested structure of tensors whose dimension 0 is the sample.
        split: sizes of the micro-batches of one window, or a list of such lists; chosen to tell causes apart by default.
        windows: consecutive windows to run; by default 2 where the step steps an optimizer, else 1.
        optimizer: the optimizers, where they are not to be found by themselves; likewise ``scheduler`` and ``scaler``.
        scheduler: see ``optimizer``.
        scaler: see ``optimizer``.
        rtol: relative error that passes; by default 1e-5 in float64.

    Raises:
        AccumulationFailure: the gradient is another; the message names the likely cause, ``.diagnosis`` is a ``Diagnosis``.
        InvalidArgumentError: batch, split or loss cannot be used.
    """
    __tracebackhide__ = True
    found = diagnose(
        step, model, loss_fn, batch, split=split, windows=windows, optimizer=optimizer, scheduler=scheduler,
        scaler=scaler, rtol=rtol,
    )  # fmt: skip
    if not found.right:
        raise AccumulationFailure(accumulation_message(found), found)


def diagnose(
    step: Step,
    model: nn.Module,
    loss_fn: LossFn,
    batch: Any,
    *,
    split: Sequence[int] | Sequence[Sequence[int]] | None = None,
    windows: int | None = None,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    rtol: float | None = None,
) -> Diagnosis:
    """What ``assert_accumulates`` would say, as a record; arguments as there.

    Raises:
        InvalidArgumentError: batch, split or loss cannot be used.
    """
    samples = sample_count(batch)
    if windows is not None and windows < 1:
        raise InvalidArgumentError(f"windows={windows}: at least one window must be run.")
    companions = Companions.of(model, optimizer, scheduler, scaler)
    trial = Trial(step, model, loss_fn, batch, companions, rtol)
    under = _widest(trial, samples)
    trial.adopt_modes(trial.traced((samples,), 1, under)[0][0])
    comparable = _comparable(trial, under)
    if comparable is None:
        return _RANDOM
    under = comparable
    steps = _steps(trial, samples, under)
    windows = windows or (2 if steps else 1)
    room = samples // windows if samples // windows >= 3 else samples
    splits = given_splits(split, samples) if split is not None else default_splits(room, smallest_batch(model))
    return _verdict(trial, splits, windows, under)


def _widest(trial: Trial, samples: int) -> Conditions:
    """float64, where the loss and the step run in it; else the dtype that the model has."""
    if is_wide(trial.model):
        return Conditions(wide=False)
    try:
        trial.is_random(Conditions(wide=True))
        trial.traced((samples,), 1, Conditions(wide=True))
    except Exception:  # the user's code may fail in any way on another dtype; if it fails in its own, that is raised
        return Conditions(wide=False)
    return Conditions(wide=True)


def _comparable(trial: Trial, under: Conditions) -> Conditions | None:
    """Conditions under which two runs of the loss give the same gradient, or None."""
    for calm in _CALMER:
        under = replace(under, calm=calm)
        if not trial.is_random(under):
            return under
    return None


def _steps(trial: Trial, samples: int, under: Conditions) -> bool:
    traces, _ = trial.traced((samples,), 1, under)
    if not traces[0].backwards and not traces[0].end.any():
        raise InvalidArgumentError(
            f"step(model, micro_batches) ran no backward that reached a parameter of {type(trial.model).__name__}, and left "
            "no .grad. It must accumulate into the model it is given, not into a copy."
        )
    return bool(traces[0].steps) or traces[0].end_moved


def _verdict(trial: Trial, splits: list[Sizes], windows: int, under: Conditions) -> Diagnosis:
    judged = trial.judged(splits, windows, under)
    wrong = [w for w in judged if not w.right]
    if any(w.interacts for w in judged) and under.calm != "eval":
        return _interacting(trial, splits, windows, under, judged)
    if not wrong:
        scheduled = _schedule(judged)
        return described([scheduled]) if scheduled else _in_its_own_dtype(trial, splits, windows, under)
    findings = find_causes(judged)
    if not findings and _changes_with_seed(trial, splits[-1], under):
        evidence = "the step's gradient for the same micro-batches changes with the random state."
        findings = [Finding("random", largest(wrong), evidence)]
    if not findings:
        if any(w.interacts for w in wrong):
            evidence = "the micro-batches' gradients cannot be weighted to make up the whole minibatch's."
            findings = [Finding("samples interact", largest(wrong), evidence)]
        else:
            findings = [Finding("unknown", largest(wrong), "no known pattern fits what was seen.")]
    scheduled = _schedule(judged)
    return described(findings + ([scheduled] if scheduled else []), under.calm)


def _interacting(trial: Trial, splits: list[Sizes], windows: int, under: Conditions, judged: list[Judged]) -> Diagnosis:
    """Where samples interact, the loop is judged in eval mode; what is right there fails for the samples alone."""
    calm = _verdict(trial, splits, windows, replace(under, calm="eval"))
    if not calm.right:
        return calm
    wrong = [w for w in judged if not w.right]
    if not wrong:
        return calm
    training = any(m.training for m in trial.model.modules())
    evidence = "the micro-batches' gradients cannot be weighted to make up the gradient of the whole minibatch" + (
        ", but in eval mode they can, and the loop is right." if training else "."
    )
    return described([Finding("samples interact", largest(wrong), evidence)], under.calm)


def _schedule(judged: list[Judged]) -> Finding | None:
    """A right gradient under a learning rate that moved on with every micro-batch."""
    for window in sorted(judged, key=lambda w: -len(w.sizes)):
        count, steps = len(window.sizes), max(1, len(window.trace.steps))
        too_often = [d for d in window.trace.schedule if d >= count > steps]
        used = window.trace.backwards[: window.trace.closed_at]
        moving = len({b.rates for b in used}) > 1
        if too_often or moving:
            seen = (
                f"the scheduler went on by {too_often[0]} in a window with {steps} optimizer step and {count} micro-batches."
                if too_often
                else "the optimizer's learning rate changed between the backward passes of one window."
            )
            return Finding("scheduler per micro-step", window, seen)
    return None


def _in_its_own_dtype(trial: Trial, splits: list[Sizes], windows: int, under: Conditions) -> Diagnosis:
    """What is right in float64 must not be lost in the dtype that the model really has."""
    if not under.wide:
        return Diagnosis("right")
    narrow = replace(under, wide=False)
    own = [max(splits, key=len)]
    if rounding(trial.model) > 1e-5:  # one addition per sample is what a coarse dtype bears worst
        least = smallest_batch(trial.model)
        own.append((least,) * max(1, sum(own[0]) // least))
    for sizes in dict.fromkeys(own):
        traces, _ = trial.traced(sizes, windows, narrow)
        for number, trace in enumerate(traces, 1):
            evidence = low_precision(trace)
            if evidence:
                return Diagnosis(
                    "low precision", evidence=(evidence,), remedy=REMEDIES["low precision"], split=sizes, window=number,
                    error=float("nan"),
                )  # fmt: skip
    return Diagnosis("right")


def _changes_with_seed(trial: Trial, sizes: Sizes, under: Conditions) -> bool:
    results = [trial.traced(sizes, 1, replace(under, seed=seed))[0][0].states()[-1] for seed in (0, 1)]
    return float((results[0] - results[1]).norm()) > trial.tolerance(under).gradient * float(results[0].norm())
