"""Whether per-sample gradients exist, add up to the gradient of the loss, and are what the hooks capture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from gradscope.checks.borrowed import borrowed, can_widen
from gradscope.checks.failures import PerSampleFailure, RuleFailure
from gradscope.errors import MixedSamplesError
from gradscope.random_numbers import random_state, set_random_state
from gradscope.reference import LossFn, per_sample_gradients
from gradscope.report import Report
from gradscope.scope import watch


@dataclass(frozen=True, slots=True)
class CapturedWrongly:
    """A parameter whose captured per-sample norms are not those of the oracle.

    Attributes:
        name: the parameter.
        rule: what described its contributions.
        status: how it was measured.
        sample: the sample that is worst.
        captured: that sample's gradient norm as captured; NaN where nothing was.
        expected: the same by the oracle.
        error: largest relative error over the samples.
    """

    name: str
    rule: str
    status: str
    sample: int
    captured: float
    expected: float
    error: float


def assert_per_sample(
    model: nn.Module, loss_fn: LossFn, batch: Any, *, every_parameter: bool = False, rtol: float | None = None
) -> None:
    """Require that per-sample gradients exist and add up, and that the hooks capture what the oracle computes.

    The mean of the oracle's per-sample gradients is the gradient of the loss; and for every parameter that
    ``gradscope.watch`` measures sample by sample, its norms are the oracle's.

    Args:
        model: in the mode to be checked; left as it was. Computed in float64 where it can be.
        loss_fn: ``loss_fn(model, batch)``, a scalar.
        batch: any nested structure of tensors with the samples along dimension 0.
        every_parameter: also require that every parameter that gets a gradient is measured sample by sample.
        rtol: relative error of a norm that passes; by default 1e-7 in float64, 1e-3 otherwise.

    Raises:
        PerSampleFailure: samples interact, or captured norms are wrong; ``.diagnosis`` is a tuple of ``CapturedWrongly``.
        InvalidArgumentError: the batch or the loss cannot be used.
    """
    __tracebackhide__ = True
    wrong, count, report = _compared(model, loss_fn, batch, every_parameter, rtol)
    if wrong:
        raise PerSampleFailure(_message(wrong, count, report), wrong)


def assert_rule(layer: nn.Module, *inputs: Any, rtol: float | None = None, seed: int = 0) -> None:
    """Require that a layer's rule describes what autograd makes: per-sample norms of every parameter, by the oracle.

    The layer is run on its own on these inputs under a random linear loss of its output.

    Args:
        layer: an instance of the layer that the rule was registered for.
        inputs: positional arguments of its forward, with the samples along dimension 0.
        rtol: as in ``assert_per_sample``.
        seed: of the loss's weights.

    Raises:
        RuleFailure: a parameter is not measured exactly, or not right; ``.diagnosis`` is a tuple of ``CapturedWrongly``.
    """
    __tracebackhide__ = True

    def loss_fn(module: Any, batch: Any) -> Tensor:
        output = next(t for t in tree.tree_leaves(module(*batch)) if isinstance(t, Tensor) and t.requires_grad)
        generator = torch.Generator("cpu").manual_seed(seed)
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64, device="cpu").to(output)
        loss: Tensor = (output * weights).sum() / output.shape[0]
        return loss

    try:
        wrong, count, report = _compared(layer, loss_fn, inputs, True, rtol)
    except PerSampleFailure as failure:
        raise RuleFailure(str(failure), failure.diagnosis) from failure
    if wrong:
        raise RuleFailure(f"Rule of {type(layer).__name__}: {_message(wrong, count, report)}", wrong)


def _compared(
    model: nn.Module, loss_fn: LossFn, batch: Any, every: bool, rtol: float | None
) -> tuple[tuple[CapturedWrongly, ...], int, Report]:
    wide = can_widen(model, batch, lambda ready: loss_fn(model, ready))
    allowed = rtol if rtol is not None else 1e-7 if wide else 1e-3
    with borrowed(model, batch, wide=wide) as ready:
        state = random_state()
        try:
            oracle = per_sample_gradients(model, loss_fn, ready)
        except MixedSamplesError as error:
            raise PerSampleFailure(str(error)) from error
        set_random_state(state)
        with watch(model) as scope:
            loss_fn(model, ready).backward()
            report = scope.step()
    floor = 1e-8 * sum(float(g.abs().square().sum()) for g in oracle.values()) ** 0.5
    found = (_difference(name, g, report, every, floor) for name, g in oracle.items())
    wrong = tuple(one for one in found if one is not None and not one.error <= allowed)
    return wrong, len(oracle), report


def _difference(name: str, gradients: Tensor, report: Report, every: bool, floor: float) -> CapturedWrongly | None:
    expected = torch.linalg.vector_norm(gradients.flatten(1), dim=1).cpu().double()
    coverage = report.coverage.get(name)
    status, rule = (coverage.status, coverage.rule) if coverage else ("not measured", "")
    figures = report.parameters.get(name)
    captured = figures.sample_norms if figures is not None else None
    if captured is None:
        if not every or not bool(expected.any()):
            return None
        sample = int(expected.argmax())
        return CapturedWrongly(name, rule, status, sample, float("nan"), float(expected[sample]), float("inf"))
    errors = (captured.cpu() - expected).abs() / expected.clamp_min(max(floor, 1e-4 * float(expected.max())))
    sample = int(errors.nan_to_num(float("inf")).argmax())
    return CapturedWrongly(
        name, rule, status, sample, float(captured[sample]), float(expected[sample]), float(errors[sample])
    )


def _message(wrong: tuple[CapturedWrongly, ...], count: int, report: Report) -> str:
    lines = [
        f"Per-sample gradients of {len(wrong)} of {count} parameters are not what the slow reference computes.",
        "",
    ]
    for one in wrong:
        how = f"{one.status}, {one.rule}" if one.rule else one.status
        reason = report.coverage[one.name].reason if one.name in report.coverage else ""
        if one.captured != one.captured:
            lines.append(f"  {one.name} ({how}): no figure per sample. {reason}".rstrip())
        else:
            lines.append(
                f"  {one.name} ({how}): the norm of sample {one.sample} was captured as {one.captured:.4g}, the reference "
                f"gives {one.expected:.4g}."
            )
    lines += ["", "What to change:"]
    lines.append("  If the layer has a rule of your own, compare it with gradscope.reference.per_sample_gradients.")
    lines.append("  Otherwise the rows of this layer's input are probably not the samples (see the coverage above).")
    return "\n".join(lines)
