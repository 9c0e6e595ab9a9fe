"""Clipping and scaling in the wrong place."""

from __future__ import annotations

from collections.abc import Sequence
from math import isclose, log2

from gradscope.checks.causes.finding import Finding, largest
from gradscope.checks.judge import Judged, shrinks, uniform_factor, write_divisor
from gradscope.checks.trace import Write


def clipped_inside(windows: Sequence[Judged]) -> Finding | None:
    """Gradients were shrunk between the backwards of one window, or each increment on its own."""
    for window in sorted((w for w in windows if not w.right), key=lambda w: -len(w.sizes)):
        inner = [w for w in window.trace.inner_writes() if _is_clip(window, w)]
        if inner:
            factors = [_norm(w.after) / _norm(w.before) for w in inner]
            shown = "×".join(["", *(f"{f:.3g} " for f in factors)]).strip()
            return Finding(
                "clipped per micro-step",
                window,
                f".grad was made smaller between backward passes ({shown}): earlier micro-batches are scaled down "
                "against later ones.",
            )
        if _capped(window):
            return Finding(
                "clipped per micro-step",
                window,
                "the micro-batches' gradients were cut to the same norm before they were added, so those with large "
                "gradients count for less.",
            )
    return None


def _is_clip(window: Judged, write: Write) -> bool:
    if not write.after.any() or write.unscaled or write_divisor(write, window.tolerance, ()) is not None:
        return False
    return shrinks(write.before, write.after)


def _capped(window: Judged) -> bool:
    """Whether every share is at most what it should be, and those below it have equal norms: clip ratios."""
    tolerance = 10 * window.tolerance.coefficient
    ratios = window.ratios
    if len(ratios) < 2 or any(not 0 < r <= 1 + tolerance for r in ratios):
        return False
    cut = [j for j, r in enumerate(ratios) if r < 1 - tolerance]
    norms = [(window.coefficients or ())[j] * _norm(window.truth.data[j]) for j in cut]
    same = len(norms) > 1 and max(norms) - min(norms) <= tolerance * max(norms)
    return same and max(ratios) - min(ratios) > tolerance


def clipped_before_unscaling(windows: Sequence[Judged]) -> Finding | None:
    """Every micro-batch counted right, but what shrinks came before what divides."""
    wrong = [w for w in windows if not w.right]
    if not wrong or not all(w.shrunk_first and _all_one(w) for w in wrong):
        return None
    shown = largest(wrong)
    writes = shown.trace.final_writes()
    clip = next((w for w in writes if _is_clip(shown, w)), writes[0])
    later = next((w for w in writes[writes.index(clip) + 1 :]), None)
    divided = "" if later is None else f", then divided by {_norm(later.before) / _norm(later.after):.6g}"
    return Finding(
        "clipped before unscaling",
        shown,
        f"after the last backward, .grad was cut from norm {_norm(clip.before):.3g} to {_norm(clip.after):.3g}{divided}: "
        "the limit was compared with the scaled gradient.",
    )


def _all_one(window: Judged) -> bool:
    return bool(window.ratios) and all(abs(r - 1) <= 10 * window.tolerance.coefficient for r in window.ratios)


def scale_changed(windows: Sequence[Judged]) -> Finding | None:
    """The loss scale was not the same for all backwards of one window."""
    for window in sorted((w for w in windows if not w.right), key=lambda w: -len(w.sizes)):
        used = window.trace.backwards[: window.trace.closed_at]
        scales = [b.scale for b in used if b.scale is not None]
        if len(set(scales)) > 1:
            return Finding(
                "scale changed",
                window,
                f"the GradScaler's scale was {', '.join(f'{s:g}' for s in scales)} at the window's backward passes: "
                "their gradients were added in different units.",
            )
        inner = [w for w in window.trace.inner_writes() if w.unscaled]
        if inner:
            return Finding(
                "scale changed",
                window,
                f".grad was unscaled after backward pass {inner[0].position} of {len(used)}, and later backwards added "
                "scaled gradients to it.",
            )
    return None


def scales_apart(windows: Sequence[Judged]) -> Finding | None:
    """No scaler was seen, but the micro-batches count unequally, by powers of two."""
    powers = [w for w in windows if not w.right and _powers_of_two(w)]
    if powers and len(powers) == sum(not w.right for w in windows) and any(len(set(w.sizes)) > 1 for w in powers):
        shown = largest(powers)
        seen = ", ".join(f"{r:.4g}" for r in shown.ratios)
        return Finding(
            "scale changed", shown, f"the micro-batches count {seen} times: unequal, and powers of two apart."
        )
    return None


def _powers_of_two(window: Judged) -> bool:
    ratios = window.ratios
    if len(ratios) < 2 or any(not r > 0 for r in ratios):
        return False
    logs = [log2(r / ratios[-1]) for r in ratios]
    return all(isclose(x, round(x), abs_tol=1e-3) for x in logs) and any(round(x) for x in logs)


def _norm(vector: object) -> float:
    return float(vector.norm())  # type: ignore[attr-defined]


def constant_factors(windows: Sequence[Judged]) -> list[float]:
    """Factors of final writes that are the same in every window although the norms differ: fixed divisors."""
    each = []
    for window in windows:
        factors = [uniform_factor(w.before, w.after, window.tolerance.coefficient) for w in window.trace.final_writes()]
        each.append([f for f in factors if f is not None and f > 0 and abs(f - 1) > window.tolerance.coefficient])
    if len(each) < 2 or not all(each):
        return []
    return [f for f in each[0] if all(any(abs(f - g) <= 1e-9 * f for g in other) for other in each[1:])]
