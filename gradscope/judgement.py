"""Whether what was captured is what autograd gave: the comparison behind every figure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.coverage import Coverage
from gradscope.moments.microstep import Measured, MicroStep
from gradscope.statistics.random_signs import signed_contribution_sq_sum

#: Relative differences that rounding does not explain. Levels seen without a fault: 3e-7 in float32, 2e-4 in float16, 2e-3 in
#: bfloat16; one token lost among those of 256 samples: 1.4e-2.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 3e-4, torch.float16: 3e-3, torch.bfloat16: 1e-2}

#: The signed sum went through a backward of its own, whose rounding is not that of the first.
SIGNED_FACTOR = 10.0

FIELDS = 7


@dataclass(frozen=True, slots=True)
class Numbers:
    """One micro-step's figures of one parameter, brought to the host.

    Attributes:
        difference: root mean square over probes of ``⟨Σhᵢ - fresh, R⟩``; estimates ``‖Σhᵢ - fresh‖``.
        fresh_sq: ``‖fresh‖²``.
        own_sq: ``Σ‖hᵢ‖²``.
        typical: ``Σ‖hᵢ‖/√n``, the size that a sum of independent contributions has.
        signed_difference: the same as ``difference`` for ``Σ rᵢhᵢ``.
        signed_typical: ``√(Σ rᵢ²‖hᵢ‖²)``.
        signed_sq: ``‖Σ rᵢhᵢ‖²``.
    """

    difference: float
    fresh_sq: float
    own_sq: float
    typical: float
    signed_difference: float
    signed_typical: float
    signed_sq: float


def device_numbers(record: Measured, step: MicroStep) -> Tensor:
    """The fields of ``Numbers`` as one float64 vector, still on the device; NaN where there is nothing."""
    arrival = record.arrival
    like = record.sum if record.sum is not None else (arrival.squared_norm if arrival is not None else torch.zeros(()))
    nothing = like.new_full((), float("nan"), dtype=torch.float64)
    values = [nothing] * FIELDS
    if arrival is not None:
        values[1] = arrival.squared_norm
    if record.signed_sum is not None:
        values[6] = record.signed_sum
    if record.sum is not None and record.norms is not None and record.probes is not None:
        values[2] = record.sum
        roots = record.norms.sqrt()
        values[3] = roots.nanmean() * step.samples**0.5
        if arrival is not None:
            values[0] = _root_mean_square(record.probes.sum(0) - arrival.probe)
        if record.signed_probe is not None and step.signs is not None:
            signs = step.signs.to(record.probes.device)
            values[4] = _root_mean_square(signs.to(record.probes.dtype) @ record.probes - record.signed_probe)
            values[5] = (signs.square() * record.norms).nanmean().mul(step.samples).sqrt()
    return torch.stack([value.to(torch.float64) for value in values])


def _root_mean_square(difference: Tensor) -> Tensor:
    return difference.abs().square().mean().sqrt()


@dataclass(frozen=True, slots=True)
class Judged:
    """One micro-step's verdict on one parameter.

    Attributes:
        coverage: status, rule, reason, error.
        own_sq: ``Σ‖hᵢ‖²``, exact or estimated; NaN where withheld.
    """

    coverage: Coverage
    own_sq: float


def judge(record: Measured, numbers: Numbers, step: MicroStep, layer_sq: float, model_sq: float) -> Judged:
    """How one parameter was measured in one micro-step.

    Args:
        record: what was captured.
        numbers: the same on the host.
        step: the micro-step.
        layer_sq: largest ``‖fresh‖²`` among the parameters of the same layer.
        model_sq: ``‖fresh‖²`` of the whole model.
    """
    if record.norms is not None:
        return _judge_exact(record, numbers, layer_sq, model_sq)
    if record.spoiled:
        return _withheld("not measured", record)
    if step.samples == 1:
        # The only sample's contribution is all that arrived.
        return Judged(Coverage("exact", "single sample", "", 0.0), numbers.fresh_sq)
    if record.signed_sum is not None and step.signs is not None:
        own_sq = signed_contribution_sq_sum(numbers.signed_sq, numbers.fresh_sq, step.signs)
        return Judged(Coverage("estimated", "random signs", record.reason), own_sq)
    return _withheld("not measured", record)


def _withheld(status: str, record: Measured) -> Judged:
    reason = record.reason or "nothing described its contributions"
    return Judged(Coverage(status, record.rule, reason), float("nan"))  # type: ignore[arg-type]


def _judge_exact(record: Measured, numbers: Numbers, layer_sq: float, model_sq: float) -> Judged:
    tolerance = TOLERANCE.get(record.dtype, 1e-2)
    eps = torch.finfo(record.dtype).eps
    # Gradients that are zero by structure (a key's bias in attention, a bias before a norm) are rounding noise of their layer's
    # size: a difference of a few units in the last place of the layer's largest gradient is no fault.
    floor = min(10 * eps / tolerance, 0.1) * layer_sq**0.5 + min(eps, 1e-4) * model_sq**0.5
    error = _relative(numbers.difference, max(numbers.fresh_sq**0.5, numbers.typical, floor))
    reason = "which rows belong to which sample was assumed, not measured" if record.assumed else ""
    if error != error and (numbers.own_sq != numbers.own_sq or numbers.fresh_sq != numbers.fresh_sq):
        # Not a number anywhere: nothing can be compared, and the figures show it themselves.
        return Judged(Coverage("exact", record.rule, "a gradient is not finite", error), numbers.own_sq)
    if not error <= tolerance:
        text = f"captured contributions differ from the gradient by {error:.1e} (up to {tolerance:.0e} is rounding)"
        return Judged(Coverage("mismatch", record.rule, text, error), float("nan"))
    if numbers.signed_difference == numbers.signed_difference:
        signed = _relative(numbers.signed_difference, max(numbers.signed_sq**0.5, numbers.signed_typical, floor))
        if not signed <= SIGNED_FACTOR * tolerance:
            text = f"contributions are attributed to the wrong samples: their signed sum is off by {signed:.1e}"
            return Judged(Coverage("mismatch", record.rule, text, error), float("nan"))
    return Judged(Coverage("exact", record.rule, reason, error), numbers.own_sq)


def _relative(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale else float("inf")
