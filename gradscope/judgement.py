"""Whether what was captured is what autograd gave: the comparison behind every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

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

#: Relative difference of a squared norm from the same built in full. Gram sums are trusted down to 1e-3 of their uncancelled
#: size, which costs them three digits.
SQUARE_TOLERANCE = 1e-2

FIELDS = 9


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
        squared: ``‖hᵢ‖²`` of the one sample that was built in full, as its contribution gave it.
        built: the same from the built gradient.
    """

    difference: float
    fresh_sq: float
    own_sq: float
    typical: float
    signed_difference: float
    signed_typical: float
    signed_sq: float
    squared: float
    built: float


def device_numbers(records: Sequence[Measured], step: MicroStep) -> Tensor:
    """The fields of ``Numbers``, a row for each record, float64 and still on the device; NaN where there is nothing.

    Computed for all parameters of a micro-step at once: one parameter's numbers are so few that each operator on them would
    cost more than it does.

    Args:
        records: those that autograd gave something.
        step: the micro-step.
    """
    arrivals = [record.arrival for record in records if record.arrival is not None]
    table = arrivals[0].squared_norm.new_full((len(records), FIELDS), float("nan"))
    table[:, 1] = torch.stack([arrival.squared_norm for arrival in arrivals])
    for k, record in enumerate(records):
        if record.signed_sum is not None:
            table[k, 6] = record.signed_sum
        if record.built is not None and record.norms is not None and step.spot is not None:
            table[k, 7], table[k, 8] = record.norms[step.spot], record.built
    for real in (True, False):
        rows = [k for k, r in enumerate(records) if _comparable(r, real)]
        if rows:
            _compare([records[k] for k in rows], step, table, torch.tensor(rows, device=table.device))
    return table


def _comparable(record: Measured, real: bool) -> bool:
    return record.norms is not None and record.probes is not None and record.probes.is_complex() is not real


def _compare(records: Sequence[Measured], step: MicroStep, table: Tensor, rows: Tensor) -> None:
    norms = torch.stack([record.norms for record in records if record.norms is not None])
    probes = torch.stack([record.probes for record in records if record.probes is not None])
    fresh = torch.stack([record.arrival.probe for record in records if record.arrival is not None])
    chosen = norms if step.chosen is None else norms[:, step.chosen.to(norms.device)]
    scale = step.samples / chosen.shape[1]
    table[rows, 0] = _root_mean_square(probes.sum(1) - fresh)
    table[rows, 2] = chosen.sum(1) * scale
    table[rows, 3] = chosen.sqrt().nanmean(1) * step.samples**0.5
    if step.signs is None or all(record.signed_probe is None for record in records):
        return
    signs = step.signs.to(probes.device)
    nothing = torch.full_like(fresh[0], float("nan"))
    signed = torch.stack([nothing if r.signed_probe is None else r.signed_probe for r in records])
    table[rows, 4] = _root_mean_square(torch.einsum("n,pnk->pk", signs.to(probes.dtype), probes) - signed)
    table[rows, 5] = (signs.square() * norms).nanmean(1).mul(step.samples).sqrt()


def _root_mean_square(difference: Tensor) -> Tensor:
    return difference.abs().square().mean(1).sqrt().double()


@dataclass(frozen=True, slots=True)
class Judged:
    """One micro-step's verdict on one parameter.

    Attributes:
        coverage: status, rule, reason, error.
        own_sq: ``Σ‖hᵢ‖²``, exact or estimated; NaN where withheld.
        by_guard: whether only a guard window could see what is wrong: windows without a guard are not to be trusted either.
    """

    coverage: Coverage
    own_sq: float
    by_guard: bool = False


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
    if not (isfinite(error) or isfinite(numbers.own_sq) or isfinite(numbers.fresh_sq)):
        # Neither the gradient nor its parts are finite: nothing can be compared, and the figures show it themselves.
        return Judged(Coverage("exact", record.rule, "a gradient is not finite", error), numbers.own_sq)
    if not error <= tolerance:
        text = f"captured contributions differ from the gradient by {error:.1e} (up to {tolerance:.0e} is rounding)"
        return Judged(Coverage("mismatch", record.rule, text, error), float("nan"))
    if numbers.signed_difference == numbers.signed_difference:
        signed = _relative(numbers.signed_difference, max(numbers.signed_sq**0.5, numbers.signed_typical, floor))
        if not signed <= SIGNED_FACTOR * tolerance:
            text = f"contributions are attributed to the wrong samples: their signed sum is off by {signed:.1e}"
            return Judged(Coverage("mismatch", record.rule, text, error), float("nan"), by_guard=True)
    if record.built is not None and isfinite(numbers.built):
        # A sample far below the others may come from a Gram sum of their size.
        scale = max(numbers.built, numbers.own_sq * 1e-6)
        if not abs(numbers.squared - numbers.built) <= SQUARE_TOLERANCE * scale:
            ratio = numbers.squared / numbers.built if numbers.built else float("inf")
            text = f"the squared norm of one sample is {ratio:.3g} times that of its gradient built in full"
            return Judged(Coverage("mismatch", record.rule, text, error), float("nan"), by_guard=True)
    return Judged(Coverage("exact", record.rule, reason, error), numbers.own_sq)


def _relative(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale else float("inf")
