"""Whether what was captured is what autograd gave: the comparison behind every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.coverage import Coverage, Status
from gradscope.moments.arrival import Arrival
from gradscope.moments.microstep import Measured, MicroStep
from gradscope.statistics.random_signs import signed_contribution_sq_sum

#: Relative differences that rounding does not explain, on average over windows. Without a fault, over 190 random models, 99 % of
#: single differences were below 4e-7 in float32, 9e-4 in float16 and 7e-3 in bfloat16; one token lost among those of 256 samples
#: makes 1.4e-2. float32 keeps room for long sums.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1.5e-3, torch.bfloat16: 6e-3}

#: The signed sum went through a backward of its own, whose rounding is not that of the first, so that everything that lies above
#: a layer adds to it. Seen without a fault: 2.3e-3 in float32, 2e-2 in bfloat16.
SIGNED_TOLERANCE = {torch.float64: 1e-7, torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}

#: A gradient that is zero by structure (a key's bias in attention, what a norm under a mean reads) is rounding
#: noise: a difference up to this many units in the last place of the whole model's gradient is no fault. Seen without
#: a fault: 0.6 and 3.1 in float32, 0.03 and 0.12 in the half precisions, for the plain and the signed sum.
NOISE = {torch.float64: 4.0, torch.float32: 4.0, torch.float16: 0.1, torch.bfloat16: 0.1}
SIGNED_NOISE = {torch.float64: 10.0, torch.float32: 10.0, torch.float16: 0.5, torch.bfloat16: 0.5}

#: Relative difference of a squared norm from the same built in full. Gram sums are trusted down to 1e-3 of their uncancelled
#: size, which costs them three digits.
SQUARE_TOLERANCE = 1e-2

_NAN = float("nan")


class Numbers(NamedTuple):
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
    signed_difference: float = _NAN
    signed_typical: float = _NAN
    signed_sq: float = _NAN
    squared: float = _NAN
    built: float = _NAN


#: How far single directions scatter about the mean over many: the square of a product of two normal numbers has heavy tails.
SCATTER = 1.75

#: Along how many random directions a guard window compares.
DIRECTIONS = 2

FIELDS = len(Numbers._fields)

#: Fields of an ordinary window: difference, ``‖fresh‖²``, ``Σ‖hᵢ‖²``, ``Σ‖hᵢ‖``.
PLAIN = 4


def device_numbers(records: Sequence[Measured], step: MicroStep) -> Tensor:
    """The first fields of ``Numbers``, a row for each record, float64 and still on the device; NaN where there is nothing.

    Computed for all parameters of a micro-step at once: one parameter's numbers are so few that each operator on them would
    cost more than it does.

    Args:
        records: those that autograd gave something.
        step: the micro-step.
    """
    arrivals = [record.arrival for record in records if record.arrival is not None]
    unguarded = step.spot is None and step.signs is None and step.chosen is None
    kinds = [_kind(record) for record in records]
    if unguarded and len(records) == len(arrivals) and set(kinds) <= {(False, 1)}:
        return _compare_all(records, arrivals)
    table = arrivals[0].squared_norm.new_full((len(records), FIELDS), float("nan"))
    table[:, 1] = torch.stack([arrival.squared_norm for arrival in arrivals])
    for k, record in enumerate(records):
        if record.signed_sum is not None:
            table[k, 6] = record.signed_sum
        if record.built is not None and record.norms is not None and step.spot is not None:
            table[k, 7], table[k, 8] = record.norms[step.spot], record.built
    for kind in dict.fromkeys(kinds):
        if kind is not None:
            rows = [k for k, other in enumerate(kinds) if other == kind]
            _compare([records[k] for k in rows], step, table, torch.tensor(rows, device=table.device))
    return table


def _compare_all(records: Sequence[Measured], arrivals: Sequence[Arrival]) -> Tensor:
    """An ordinary window, all of whose parameters have contributions: ``PLAIN`` fields, in as few operators as there can be."""
    norms = torch.stack([record.norms for record in records if record.norms is not None])
    probes = torch.stack([record.probes for record in records if record.probes is not None])
    off = probes.sum(1, dtype=torch.float64) - torch.stack([arrival.probe for arrival in arrivals])
    if off.shape[1] > 1:
        off = off.square().mean(1, keepdim=True).sqrt()
    fresh_sq = torch.stack([arrival.squared_norm for arrival in arrivals])
    return torch.cat([off, fresh_sq[:, None], norms.sum(1, keepdim=True), norms.sqrt().sum(1, keepdim=True)], dim=1)


def read(row: Sequence[float], samples: int) -> Numbers:
    """One row of ``device_numbers``, on the host."""
    if len(row) > PLAIN:
        return Numbers(*row)
    off, fresh_sq, own_sq, lengths = row
    return Numbers(abs(off), fresh_sq, own_sq, lengths / sqrt(samples))


def _kind(record: Measured) -> tuple[bool, int] | None:
    """What is compared together: complex or not, and along how many directions (parameters that failed look along all)."""
    if record.norms is None or record.probes is None:
        return None
    return record.probes.is_complex(), record.probes.shape[1]


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
    squares = difference.abs().square() if difference.is_complex() else difference.square()
    return squares.mean(1).sqrt().double()


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


def judge(record: Measured, numbers: Numbers, step: MicroStep, model_sq: float, coarsest: torch.dtype) -> Judged:
    """How one parameter was measured in one micro-step.

    Args:
        record: what was captured.
        numbers: the same on the host.
        step: the micro-step.
        model_sq: ``‖fresh‖²`` of the whole model.
        coarsest: the lowest precision among all of the micro-step's parameters.
    """
    if record.norms is not None:
        return _judge_exact(record, numbers, model_sq**0.5, coarsest)
    if record.spoiled:
        if record.unplaced and numbers.fresh_sq <= (10 * torch.finfo(coarsest).eps) ** 2 * model_sq:
            # Rows of rounding noise fit no sample.
            record.reason = "its gradient is zero up to rounding: what follows it takes out whatever it adds"
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


def _judge_exact(record: Measured, numbers: Numbers, model: float, coarsest: torch.dtype) -> Judged:
    looks = DIRECTIONS if record.probes is None else record.probes.shape[1]
    limit, noise = _limits(record.dtype, looks)
    floor = noise * model / limit
    error = _relative(numbers.difference, max(numbers.fresh_sq**0.5, numbers.typical, floor))
    if not (isfinite(error) or isfinite(numbers.own_sq) or isfinite(numbers.fresh_sq)):
        # Neither the gradient nor its parts are finite: nothing can be compared, and the figures show it themselves.
        return Judged(Coverage(_status(record), record.rule, "a gradient is not finite", error), numbers.own_sq)
    if not isfinite(numbers.fresh_sq) and isfinite(numbers.own_sq):
        text = "its gradient is not finite although what each sample added is: the sum overflowed in half precision"
        return Judged(Coverage("not measured", record.rule, text, error), float("nan"))
    if not error <= limit:
        text = _l2_term(record) or differs(error, limit)
        return Judged(Coverage("mismatch", record.rule, text, error), float("nan"))
    guarded = isfinite(numbers.signed_difference) or isfinite(numbers.signed_sq) or isfinite(numbers.built)
    fault = guarded and (_wrong_samples(numbers, model, coarsest) or _wrong_square(numbers))
    if fault:
        return Judged(Coverage("mismatch", record.rule, fault, error), float("nan"), by_guard=True)
    reason = "which rows belong to which sample was assumed, not measured" if record.assumed else ""
    return Judged(Coverage(_status(record), record.rule, reason, error), numbers.own_sq)


@lru_cache
def _limits(dtype: torch.dtype, looks: int) -> tuple[float, float]:
    return allowed(dtype, looks), NOISE.get(dtype, 0.1) * torch.finfo(dtype).eps


@lru_cache
def allowed(dtype: torch.dtype, looks: int) -> float:
    """Largest root mean square of differences along so many random directions that rounding explains; few scatter more."""
    return TOLERANCE.get(dtype, 1e-2) * (1 + SCATTER * sqrt(DIRECTIONS / looks))


def differs(error: float, limit: float) -> str:
    """What is said of contributions that do not add up."""
    return f"captured contributions differ from the gradient by {error:.1e} (up to {limit:.0e} is rounding)"


def _l2_term(record: Measured) -> str:
    """What is missing, where it is the parameter itself times a number; else empty."""
    if record.probes is None or record.arrival is None or record.parameter_probe is None:
        return ""
    rest, along = record.arrival.probe - record.probes.sum(0), record.parameter_probe
    along = along.to(rest.dtype)
    if along.numel() < 2 or not bool(along.abs().min() > 0) or rest.is_complex():
        return ""
    factor = float((rest * along).sum() / along.square().sum())
    if not float((rest - factor * along).norm()) <= 2e-3 * float(rest.norm()):
        return ""
    return (
        f"the loss holds an L2 term of about {factor / 2:.3g}·‖parameter‖², which belongs to no sample: leave it to the "
        f"optimizer (weight_decay={factor:.3g}), or give it a backward of its own"
    )


def _wrong_samples(numbers: Numbers, model: float, coarsest: torch.dtype) -> str:
    if not isfinite(numbers.signed_difference) and not isfinite(numbers.signed_sq):
        # No inner backward, or one that overflowed.
        return ""
    tolerance = SIGNED_TOLERANCE.get(coarsest, 0.1)
    floor = SIGNED_NOISE.get(coarsest, 1.0) * torch.finfo(coarsest).eps * model / tolerance
    error = _relative(numbers.signed_difference, max(numbers.signed_sq**0.5, numbers.signed_typical, floor))
    if error <= tolerance:
        return ""
    return f"contributions are attributed to the wrong samples: their signed sum is off by {error:.1e}"


def _wrong_square(numbers: Numbers) -> str:
    if not isfinite(numbers.built):
        return ""
    # A sample far below the others may come from a Gram sum of their size.
    scale = max(numbers.built, numbers.own_sq * 1e-6)
    if abs(numbers.squared - numbers.built) <= SQUARE_TOLERANCE * scale:
        return ""
    ratio = numbers.squared / numbers.built if numbers.built else float("inf")
    return f"the squared norm of one sample is {ratio:.3g} times that of its gradient built in full"


def _status(record: Measured) -> Status:
    return "second pass" if record.second_pass else "exact"


def _relative(difference: float, scale: float) -> float:
    if difference == 0:
        return 0.0
    return difference / scale if scale else float("inf")
