"""A penalty on the weights that was added once per micro-batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gradscope.checks.causes.finding import Finding, largest
from gradscope.checks.judge import Judged


def regularizer_repeated(windows: Sequence[Judged]) -> Finding | None:
    """The samples count right, and what is too much points along the penalty's gradient, or along the weights."""
    wrong = [w for w in windows if not w.right]
    if not wrong:
        return None
    tolerance = 10 * wrong[0].tolerance.coefficient
    shown = largest(wrong)
    if all(w.truth.direct.any() and _samples_right(w) and abs(w.direct - 1) > tolerance for w in wrong):
        return Finding(
            "regularizer per micro-step",
            shown,
            f"the samples count once, but the part of the loss that depends on the parameters alone counts "
            f"{shown.direct:.4g} times in {len(shown.sizes)} micro-steps.",
        )
    along = [_along_weights(w) for w in wrong]
    if all(a is not None for a in along):
        return Finding(
            "regularizer per micro-step",
            shown,
            f"the gradient is right but for {_along_weights(shown):.3g} times the weights themselves, as an L2 penalty "
            "adds it; loss_fn holds less of it, or none.",
        )
    return None


def _samples_right(window: Judged) -> bool:
    return bool(window.ratios) and all(abs(r - 1) <= 10 * window.tolerance.coefficient for r in window.ratios)


def _along_weights(window: Judged) -> float | None:
    """``t`` with ``got - G = t·w`` on every parameter where they differ; None where there is none."""
    layout, found = window.truth.layout, []
    difference = window.judged - window.truth.whole
    for place, scale, mine in zip(layout.slices, window.truth.scales(), window.trace.owned, strict=True):
        if not mine or place.stop - place.start < 2 or float(difference[place].norm()) <= 1e-5 * float(scale):
            continue
        factor = _factor(difference[place], window.trace.start[place])
        if factor is None:
            return None
        found.append(factor)
    if not found or max(found) - min(found) > 1e-4 * abs(max(found)):
        return None
    return found[0]


def _factor(difference: Tensor, weights: Tensor) -> float | None:
    square = float(weights.square().sum())
    if not square > 0:
        return None
    factor = float((difference * weights).sum()) / square
    return factor if float((difference - factor * weights).norm()) <= 1e-4 * float(difference.norm()) else None
