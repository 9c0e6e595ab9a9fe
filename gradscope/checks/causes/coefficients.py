"""Causes that show only in how much each micro-batch counts: ``cⱼ`` against ``aⱼ``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gradscope.checks.causes.finding import Finding, largest
from gradscope.checks.diagnosis import Cause
from gradscope.checks.judge import Judged


def micro_batches_missing(windows: Sequence[Judged]) -> Finding | None:
    """A micro-batch went into no backward of its window, or into several."""
    wrong = [w for w in windows if not w.right and any(w.uses)]
    dropped = [w for w in wrong if 0 in w.uses]
    repeated = [w for w in wrong if max(w.uses) > 1 and _uneven(w)]
    if not dropped and not repeated:
        return None
    shown = largest(repeated or dropped)
    seen = ", ".join(str(u) for u in shown.uses)
    evidence = f"the micro-batches of the window went into {seen} backward passes; each should go into one."
    if repeated:
        return Finding("micro-batch repeated", shown, evidence, also=("micro-batch dropped",) if dropped else ())
    return Finding("micro-batch dropped", shown, evidence)


def _uneven(window: Judged) -> bool:
    ratios = window.ratios
    return not ratios or max(ratios) - min(ratios) > 10 * window.tolerance.coefficient


def counted_wrongly(windows: Sequence[Judged]) -> Finding | None:
    """The first pattern that explains every window; others that do as well are named beside it."""
    known = [w for w in windows if w.ratios]
    wrong = [w for w in known if not w.right]
    if not wrong or any(not w.right and not w.ratios for w in windows) or any(_all_one(w) for w in wrong):
        return None
    matching = [(cause, text) for cause, test, text in _PATTERNS if test(known)]
    if not matching:
        return None
    shown = largest(wrong)
    cause, text = matching[0]
    ratios = shown.ratios
    evidence = text.format(
        r=f"{ratios[0]:.4g}", c=f"{(shown.coefficients or (0.0,))[0]:.4g}", k=len(shown.sizes), n=sum(shown.sizes),
        inverse=_inverse(ratios[0]), all=", ".join(f"{x:.4g}" for x in ratios),
        divisor=_inverse((shown.coefficients or (1.0,))[0]),
    )  # fmt: skip
    others = tuple(dict.fromkeys(c for c, _ in matching[1:] if c != cause))
    return Finding(cause, shown, evidence, also=others)


def _inverse(number: float) -> str:
    return f"{1 / number:.4g}" if number else "0"


def _all_one(window: Judged) -> bool:
    return all(abs(r - 1) <= 10 * window.tolerance.coefficient for r in window.ratios)


def _matches(windows: Sequence[Judged], expected: Callable[[Judged], Sequence[float]]) -> bool:
    """Whether ``cⱼ`` is what the pattern expects, in every window."""
    return all(
        abs(c - e) <= 10 * w.tolerance.coefficient * abs(e)
        for w in windows
        for c, e in zip(w.coefficients or (), expected(w), strict=True)
    )


def _same_number(windows: Sequence[Judged], numbers: Callable[[Judged], Sequence[float]]) -> float | None:
    """The one number that all windows and micro-batches share, or None."""
    seen = [x for w in windows for x in numbers(w)]
    tolerance = 10 * windows[0].tolerance.coefficient
    return seen[0] if max(seen) - min(seen) <= tolerance * abs(seen[0]) else None


def _uniform(window: Judged) -> bool:
    return _same_number([window], lambda w: w.ratios) is not None


def _not_divided(windows: Sequence[Judged]) -> bool:
    """``c = 1``: means added up; ``c = N·a``: sums added up, N samples or tokens."""
    if _matches(windows, lambda w: [1.0] * len(w.sizes)):
        return True
    return _matches(windows, lambda w: [sum(w.sizes) * a for a in w.weights])


def _tokens_not_divided(windows: Sequence[Judged]) -> bool:
    """Uniform, a whole number, and another one in other windows: sums over tokens."""
    totals = [w.ratios[0] for w in windows if _uniform(w)]
    whole = all(t > 1.5 and abs(t - round(t)) <= 1e-3 for t in totals)
    if len(totals) < len(windows) or not whole:
        return False
    total = round(totals[0])
    return len({round(t) for t in totals}) > 1 or (len(windows) == 1 and bool(total & (total - 1)))


def _divided_by_count(windows: Sequence[Judged]) -> bool:
    return _matches(windows, lambda w: [a / len(w.sizes) for a in w.weights])


def _divided_by_count_squared(windows: Sequence[Judged]) -> bool:
    return _matches(windows, lambda w: [1 / len(w.sizes) ** 2] * len(w.sizes))


def _divided_by_samples(windows: Sequence[Judged]) -> bool:
    return _matches(windows, lambda w: [a / sum(w.sizes) for a in w.weights]) or _matches(
        windows, lambda w: [a / size for a, size in zip(w.weights, w.sizes, strict=True)]
    )


def _mean_of_means(windows: Sequence[Judged]) -> bool:
    return _matches(windows, lambda w: [1 / len(w.sizes)] * len(w.sizes))


def _weighted_by_samples(windows: Sequence[Judged]) -> bool:
    return _matches(windows, lambda w: [size / sum(w.sizes) for size in w.sizes])


def _constant_divisor(windows: Sequence[Judged]) -> bool:
    """``c`` is the same in windows of different length, or the window's sum is divided by a fixed number of samples."""
    if len({len(w.sizes) for w in windows}) < 2:
        return _another_length(windows)
    number = _same_number(windows, lambda w: w.coefficients or ())
    if number is not None:
        return abs(number - 1) > 1e-3
    if len({sum(w.sizes) for w in windows}) < 2:
        return False
    return _same_number(windows, lambda w: [r / sum(w.sizes) for r in w.ratios]) is not None


def _another_length(windows: Sequence[Judged]) -> bool:
    """With windows of one length only: ``c`` is one over a whole number that is not theirs, on an uneven split."""
    number = _same_number(windows, lambda w: w.coefficients or ())
    if number is None or not 0 < number < 0.9 or all(_uniform(w) for w in windows):
        return False
    return abs(1 / number - round(1 / number)) <= 1e-3 and round(1 / number) != len(windows[0].sizes)


def _one_size_scaled_down(windows: Sequence[Judged]) -> bool:
    """Windows of one size cannot tell a divisor for another size from any other constant."""
    return len({sum(w.sizes) for w in windows}) == 1 and _scaled_down(windows)


def _scaled_down(windows: Sequence[Judged]) -> bool:
    number = _same_number(windows, lambda w: w.ratios)
    return number is not None and 0 < number < 1


def _scaled_up(windows: Sequence[Judged]) -> bool:
    number = _same_number(windows, lambda w: w.ratios)
    return number is not None and number > 1


_PATTERNS: tuple[tuple[Cause, Callable[[Sequence[Judged]], bool], str], ...] = (
    (
        "not divided",
        _not_divided,
        "each micro-batch's loss counts {c} in the sum: it was added up without being divided.",
    ),
    ("divided twice", _divided_by_count, "every micro-batch counts {r} of what it should: one over their number, {k}."),
    ("divided twice", _divided_by_count_squared, "each micro-batch's loss counts {c} = 1/{k}²: divided by {k} twice."),
    (
        "mean of means",
        _mean_of_means,
        "each micro-batch's mean counts 1/{k}, whatever it holds: they count {all} of what they should.",
    ),
    (
        "mean of means",
        _weighted_by_samples,
        "each micro-batch counts by its number of samples, but the loss is a mean over something else (tokens): they "
        "count {all} of what they should.",
    ),
    (
        "divided twice",
        _divided_by_samples,
        "every micro-batch counts 1/{inverse} of what it should: a mean was divided by the number of samples again.",
    ),
    (
        "short window",
        _constant_divisor,
        "the divisor is the same whatever the window holds: each loss counts {c} = 1/{divisor} in a window of {k} "
        "micro-batches and {n} samples.",
    ),
    (
        "averaged over ranks twice",
        _scaled_down,
        "the gradient is {r} = 1/{inverse} of what it should be in every window, whatever its size: a constant divisor, "
        "as the number of ranks is.",
    ),
    (
        "short window",
        _one_size_scaled_down,
        "the gradient is {r} = 1/{inverse} of what it should be: a divisor that belongs to a larger window.",
    ),
    (
        "not divided",
        _tokens_not_divided,
        "the gradient is {r} times too large, a whole number that is no fixed scale: a sum over tokens or elements "
        "was not divided by their number.",
    ),
    (
        "never unscaled",
        _scaled_up,
        "the gradient is {r} times too large in every window, whatever its size: a constant factor, as a loss scale is.",
    ),
)
