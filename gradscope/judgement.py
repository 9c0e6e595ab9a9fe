"""Whether what was captured is what autograd gave: the comparison behind every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, isfinite, nan, sqrt

import numpy as np
import torch
from numpy.typing import NDArray

from gradscope.coverage import Coverage, Status
from gradscope.evidence import Numbers
from gradscope.moments.microstep import Measured, MicroStep
from gradscope.statistics.random_signs import signed_contribution_sq_sum

_Floats = NDArray[np.float64]
_Flags = NDArray[np.bool_]

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

#: How far single directions scatter about the mean over many: the square of a product of two normal numbers has heavy tails.
SCATTER = 1.75

#: Along how many random directions a guard window compares.
DIRECTIONS = 2


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
    right = way(record.rule, record.second_pass, record.assumed)
    return Judged(Coverage(right.status, right.rule, right.reason, error), numbers.own_sq)


@np.errstate(all="ignore")
def explained(rows: _Floats, samples: int, dtypes: Sequence[torch.dtype]) -> tuple[_Floats, _Flags, _Floats]:
    """What ``judge`` finds right beyond doubt in ordinary micro-steps, for all of their parameters at once.

    Args:
        rows: ``PLAIN`` numbers of each parameter in each micro-step, ``[S, P, 4]``.
        samples: of each micro-step.
        dtypes: per parameter, its record's.

    Returns:
        Relative differences, ``[S, P]``; whether each, alone, is one that rounding explains, so that the verdict is "exact" by
        the record's rule; and the squares of the largest such differences, ``[P]``.
    """
    tolerance, noise = np.array([_beyond_doubt(dtype) for dtype in dtypes]).T
    off, fresh_sq, own_sq, lengths = np.moveaxis(rows, -1, 0)
    model = np.sqrt(fresh_sq.sum(1, keepdims=True))
    size = np.maximum(np.maximum(np.sqrt(fresh_sq), lengths / sqrt(samples)), noise * model)
    # What is not finite is not right, whatever comes of it here; nor is what has no size.
    size[~(fresh_sq + own_sq < inf) | (size == 0)] = nan
    errors = np.abs(off) / size
    return errors, errors <= tolerance, tolerance * tolerance


@lru_cache
def _beyond_doubt(dtype: torch.dtype) -> tuple[float, float]:
    """The largest difference that even many windows explain, and which share of the model's gradient is nothing."""
    limit, noise = _limits(dtype, 1)
    return TOLERANCE.get(dtype, 1e-2), noise / limit


@lru_cache
def way(rule: str, second_pass: bool, assumed: bool) -> Coverage:
    """How a parameter is covered whose contributions add up; the error is left open."""
    reason = "which rows belong to which sample was assumed, not measured" if assumed else ""
    return Coverage("second pass" if second_pass else "exact", rule, reason)


@lru_cache
def _limits(dtype: torch.dtype, looks: int) -> tuple[float, float]:
    return allowed(dtype, looks), NOISE.get(dtype, 0.1) * torch.finfo(dtype).eps


@lru_cache
def allowed(dtype: torch.dtype, looks: int) -> float:
    """Largest root mean square of differences along so many random directions that rounding explains; few scatter more."""
    return TOLERANCE.get(dtype, 1e-2) * (1 + SCATTER * sqrt(DIRECTIONS / looks))


@lru_cache
def bound(dtype: torch.dtype) -> float:
    """The mean square of differences that rounding explains, however many there are."""
    return TOLERANCE.get(dtype, 1e-2) ** 2


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
