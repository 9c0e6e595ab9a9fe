"""One window judged: whether the gradient of the loss was applied, and what each micro-batch's share was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.checks.trace import Backward, WindowTrace, Write
from gradscope.checks.truth import Truth, least_squares


@dataclass(frozen=True, slots=True, eq=False)
class Tolerance:
    """What counts as equal.

    Attributes:
        gradient: largest relative error of a right gradient.
        coefficient: largest relative error of a right coefficient.
    """

    gradient: float
    coefficient: float


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One window, judged.

    Attributes:
        sizes: its micro-batches.
        window: its number, from 1.
        trace: what happened.
        truth: what should have come out.
        tolerance: what counts as equal.
        right: whether the gradient of the loss was applied, or was transformed once at the end.
        judged: the accumulated gradient that comes closest.
        coefficients: ``cⱼ``, each micro-batch's share, times what divides it at the end; None where none were found.
        uses: how many backwards each micro-batch was seen in.
        direct: how often the regularizer counted.
        residual: relative part of the gradient that the coefficients leave unexplained.
        outside: whether the gradient was made outside of backward, in buffers of the user's own.
        shrunk_first: whether something like clipping came before a division or unscaling.
    """

    sizes: tuple[int, ...]
    window: int
    trace: WindowTrace
    truth: Truth
    tolerance: Tolerance
    right: bool
    judged: Tensor
    coefficients: tuple[float, ...] | None
    uses: tuple[int, ...]
    direct: float
    residual: float
    outside: bool
    shrunk_first: bool

    @property
    def weights(self) -> tuple[float, ...]:
        """``aⱼ``: what each micro-batch should count."""
        return self.truth.weights or tuple(size / sum(self.sizes) for size in self.sizes)

    @property
    def ratios(self) -> tuple[float, ...]:
        """``cⱼ / aⱼ``: 1 everywhere is right; empty where the coefficients are not known."""
        if self.coefficients is None:
            return ()
        return tuple(c / a if a else float("nan") for c, a in zip(self.coefficients, self.weights, strict=True))

    @property
    def interacts(self) -> bool:
        """Whether the micro-batches' gradients cannot be weighted to make up the whole one."""
        return self.truth.weights is None

    def error(self, gradient: Tensor | None = None) -> float:
        """Largest relative error over the judged parameters."""
        return worst_error(self.trace, self.truth, self.judged if gradient is None else gradient)


def worst_error(trace: WindowTrace, truth: Truth, gradient: Tensor) -> float:
    """Largest relative error over the parameters that are judged; NaN counts as infinite."""
    errors = truth.errors(gradient)[torch.tensor(trace.owned, device="cpu")]
    return float("inf") if bool(errors.isnan().any()) else float(errors.max())


def judge(
    sizes: tuple[int, ...],
    window: int,
    trace: WindowTrace,
    truth: Truth,
    tolerance: Tolerance,
    constant: Sequence[float],
) -> Judged:
    """Judge one window; ``constant`` holds factors of final writes that are the same in every window."""
    states, writes = trace.states(), trace.final_writes()
    factors = [write_divisor(w, tolerance, constant) for w in writes]
    # How the gradient went from its last noted state into the optimizer (a fused optimizer unscales there).
    factors += [divisor(states[-2], states[-1], tolerance, constant)] if len(states) > len(writes) + 1 else []
    errors = [worst_error(trace, truth, state) for state in states]
    right = any(
        error <= tolerance.gradient and all(f is None for f in factors[i:]) and not _cleared(writes[i:])
        for i, error in enumerate(errors)
    )
    outside = _made_outside(trace, writes, tolerance)
    share = _share(trace, truth, tolerance, states, outside)
    total = 1.0
    for f in [] if outside else factors:
        total *= f or 1.0
    last_divisor = max((i for i, f in enumerate(factors) if f is not None), default=-1)
    shrunk_first = any(f is None for f in factors[: max(last_divisor, 0)])
    best = min(range(len(states)), key=lambda i: errors[i]) if right else _shown(factors, states)
    return Judged(
        sizes, window, trace, truth, tolerance, right, states[best],
        None if share.coefficients is None else tuple(c * total for c in share.coefficients),
        share.uses, share.direct * total, share.residual, outside, shrunk_first,
    )  # fmt: skip


def _shown(factors: Sequence[float | None], states: Sequence[Tensor]) -> int:
    """The state to show of a wrong window: after the last division, before what only shrinks."""
    last = max((i for i, f in enumerate(factors) if f is not None), default=-1)
    return min(last + 1, len(states) - 1) if factors else 0


def uniform_factor(before: Tensor, after: Tensor, tolerance: float) -> float | None:
    """``f`` with ``after = f·before``, or None."""
    square = float(before.square().sum())
    if not square > 0:
        return None
    factor = float((before * after).sum()) / square
    return factor if float((after - factor * before).norm()) <= tolerance * float(after.norm()) else None


def divisor(before: Tensor, after: Tensor, tolerance: Tolerance, constant: Sequence[float]) -> float | None:
    """The factor of a write that divides (or multiplies) by a fixed number, or None for clipping and the like.

    A division by a count or a loss scale has an integer as its factor or its inverse; a clip ratio has one only by
    chance. A factor that is the same in every window, whatever the norms, is a constant too.
    """
    factor = uniform_factor(before, after, tolerance.coefficient)
    if factor is None or not factor > 0 or abs(factor - 1) <= tolerance.coefficient:
        return None
    exact = tolerance.coefficient <= 1e-4
    near, most = (1e-12, 2**24) if exact else (1e-5, 2**10)
    for value in (factor, 1 / factor):
        whole = round(value)
        power = whole > 0 and whole & (whole - 1) == 0
        if (1 <= whole <= most or power) and abs(value - whole) <= near * whole:
            return factor
    return factor if any(abs(factor - c) <= 1e-9 * c for c in constant) else None


def write_divisor(write: Write, tolerance: Tolerance, constant: Sequence[float]) -> float | None:
    """``divisor`` of a write; what a GradScaler wrote is one whatever its factor."""
    if write.unscaled:
        return uniform_factor(write.before, write.after, tolerance.coefficient)
    return divisor(write.before, write.after, tolerance, constant)


def _cleared(writes: Sequence[Write]) -> bool:
    return any(bool(w.before.any()) and not bool(w.after.any()) for w in writes)


def shrinks(before: Tensor, after: Tensor) -> bool:
    """Whether a write only made elements smaller and kept their signs, as every kind of clipping does."""
    rounding = 1e-6 * float(before.abs().max())
    return bool(((after.abs() <= before.abs() * (1 + 1e-6) + rounding) & (after * before >= 0)).all())


def _made_outside(trace: WindowTrace, writes: Sequence[Write], tolerance: Tolerance) -> bool:
    """Whether ``.grad`` was replaced at the end by something that the backwards do not explain."""
    for write in writes:
        known = uniform_factor(write.before, write.after, tolerance.coefficient) is not None
        if bool(write.after.any()) and not known and not shrinks(write.before, write.after):
            return True
    used = trace.backwards[: trace.closed_at]
    return any(_unexplained(b, tolerance.coefficient) for b in used)


def _unexplained(backward: Backward, rounding: float) -> bool:
    """Whether ``.grad`` did not grow by what reached the leaves (``autograd.grad``, gradient-as-buffer tricks)."""
    grown, size = backward.after - backward.before, float(backward.increment.norm())
    return float((grown - backward.increment).norm()) > 0.05 * size + rounding * float(backward.before.norm())


@dataclass(frozen=True, slots=True)
class _Share:
    coefficients: tuple[float, ...] | None
    uses: tuple[int, ...]
    direct: float
    residual: float


def _share(trace: WindowTrace, truth: Truth, tolerance: Tolerance, states: Sequence[Tensor], outside: bool) -> _Share:
    """How much each micro-batch counted: from each increment where it can be, else fitted to the sum."""
    used = trace.backwards[: trace.closed_at]
    if not outside and used:
        traced = _traced(used, truth, tolerance)
        if traced is not None:
            return traced
    target = states[-1] if outside else states[0] - (trace.leftover if not trace.inner_writes() else 0)
    return _fitted(target, truth)


def _traced(used: Sequence[Backward], truth: Truth, tolerance: Tolerance) -> _Share | None:
    data = truth.data
    k, coefficients, uses, direct, residual = len(data), [0.0] * len(data), [0] * len(data), 0.0, 0.0
    has_direct = bool(truth.direct.any())
    for backward in used:
        if not bool(backward.increment.any()):
            continue
        candidates = backward.micro_batches or tuple(range(k))
        fits = [(_one(backward.increment, data[j], truth.direct if has_direct else None), j) for j in candidates]
        # Of several that fit (equal micro-batches, or a single parameter) take one that was not used before.
        (c, r, rest), j = min(fits, key=lambda fit: (fit[0][2] > 10 * tolerance.coefficient, uses[fit[1]], fit[0][2]))
        if not rest <= 10 * tolerance.coefficient:
            return None
        coefficients[j] += c
        direct += r
        uses[j] += 1
        residual = max(residual, rest)
    return _Share(tuple(coefficients), tuple(uses), direct, residual)


def _one(increment: Tensor, part: Tensor, direct: Tensor | None) -> tuple[float, float, float]:
    """``increment ≈ c·part + r·direct``: (c, r, relative residual)."""
    size = float(increment.norm())
    if direct is not None:
        solved = least_squares(torch.stack([part, direct]), increment)
        if solved is not None:
            return solved[0], solved[1], float((increment - solved[0] * part - solved[1] * direct).norm()) / size
    square = float(part.square().sum())
    c = float((increment * part).sum()) / square if square > 0 else 0.0
    return c, 0.0, float((increment - c * part).norm()) / size


def _fitted(target: Tensor, truth: Truth) -> _Share:
    rows = truth.data
    direct = truth.direct[None] if bool(truth.direct.any()) else truth.direct.new_zeros((0, truth.direct.numel()))
    solved = least_squares(torch.cat([rows, direct]), target)
    unused = (0,) * len(rows)
    if solved is None:
        return _Share(None, unused, 0.0, float("nan"))
    fit = torch.tensor(solved, dtype=torch.float64, device="cpu") @ torch.cat([rows, direct])
    size = float(target.norm())
    residual = float((target - fit).norm()) / size if size > 0 else 0.0
    return _Share(tuple(solved[: len(rows)]), unused, solved[len(rows)] if len(direct) else 0.0, residual)
