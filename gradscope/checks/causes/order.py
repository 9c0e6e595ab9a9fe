"""Things done at the wrong moment: optimizer steps, clearing, changes of the parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradscope.checks.causes.finding import Finding, largest
from gradscope.checks.judge import Judged
from gradscope.checks.trace import Write


def stepped_early(windows: Sequence[Judged]) -> Finding | None:
    """The optimizer stepped before the window's last backward."""
    early = [w for w in windows if any(_is_early(w, i) for i in range(len(w.trace.steps)))]
    if not early:
        return None
    shown = largest(early)
    steps, backwards = shown.trace.steps, len(shown.trace.backwards)
    if len(steps) > 1 and all(len(w.trace.steps) >= len(w.trace.backwards) for w in early):
        return Finding(
            "parameters changed inside window",
            shown,
            f"the optimizer stepped {len(steps)} times in a window of {backwards} backward passes: each micro-batch "
            "after the first was run with parameters that had already changed.",
            also=("stepped too early",),
        )
    positions = ", ".join(str(step.position) for step in steps)
    return Finding(
        "stepped too early",
        shown,
        f"the optimizer stepped after backward pass {positions} of {backwards}: what came later was left out of this "
        "step, or leaked into the next one.",
    )


def _is_early(window: Judged, index: int) -> bool:
    step = window.trace.steps[index]
    return not step.inside and step.position < len(window.trace.backwards)


def parameters_moved(windows: Sequence[Judged]) -> Finding | None:
    """Parameters changed between the backwards of one window, by something else than an optimizer."""
    during = [w for w in windows if any(b.moved_during for b in w.trace.backwards)]
    if during:
        return Finding(
            "parameters changed inside window",
            largest(during),
            "the parameters changed while a backward pass ran (an optimizer that steps inside backward): each micro-batch is "
            "a step of its own, so nothing is accumulated.",
        )
    moved = [w for w in windows if any(b.moved for b in w.trace.backwards[: w.trace.closed_at])]
    if not moved:
        return None
    shown = largest(moved)
    first = next(i for i, b in enumerate(shown.trace.backwards) if b.moved)
    return Finding(
        "parameters changed inside window",
        shown,
        f"when backward pass {first + 1} of {len(shown.trace.backwards)} ran, the parameters were no longer those that "
        "the window had started with, though no optimizer had stepped.",
    )


def zero_grad_missing(windows: Sequence[Judged]) -> Finding | None:
    """The previous window's gradient was still in ``.grad``, and every window without it is right."""
    leaking = [w for w in windows if _leftover(w)]
    wrong = [w for w in windows if not w.right]
    if not leaking or any(not _leftover(w) for w in wrong):
        return None
    shown = largest([w for w in leaking if not w.right] or leaking)
    names = [
        name
        for name, place, mine in zip(
            shown.trace.layout.names, shown.trace.layout.slices, shown.trace.owned, strict=True
        )
        if mine and bool(shown.trace.leftover[place].any())
    ]
    which = "every parameter" if len(names) == len(shown.trace.layout.names) else ", ".join(names)
    return Finding(
        "missing zero_grad",
        shown,
        f"at the first backward of window {shown.window}, .grad still held the gradient of the window before "
        f"({which}); windows that started from an empty .grad are right.",
    )


def _leftover(window: Judged) -> bool:
    places = window.trace.layout.places(window.trace.owned)
    return bool(window.trace.leftover[places].any())


def zero_grad_inside(windows: Sequence[Judged]) -> Finding | None:
    """``.grad`` was cleared after a backward whose gradient had not been applied yet."""
    for window in sorted(windows, key=lambda w: (w.right, -len(w.sizes))):
        if window.right or window.outside:
            continue
        trace = window.trace
        cleared = [w for w in [*trace.inner_writes(), *trace.final_writes()] if w.position and _clears(window, w)]
        if cleared:
            shown = largest([w for w in windows if not w.right])
            places = sorted({w.position for w in cleared})
            return Finding(
                "zero_grad inside window",
                shown if any(_clears(shown, w) for w in shown.trace.writes) else window,
                f".grad was cleared after backward pass {', '.join(map(str, places))} of {len(trace.backwards)}, before "
                "the optimizer had used it: only what came later is left.",
            )
    return None


def _clears(window: Judged, write: Write) -> bool:
    layout = window.trace.layout
    places = torch.cat(
        [torch.arange(layout.slices[i].start, layout.slices[i].stop, device="cpu") for i in sorted(write.changed)]
    )
    return bool(write.before[places].any()) and not bool(write.after[places].any())
