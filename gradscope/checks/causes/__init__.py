"""An open set: each recogniser sees one family of accumulation bugs in the judged windows.

The order is the order of belief: what the trace saw directly comes before what coefficients suggest.
"""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.checks.causes.coefficients import counted_wrongly, micro_batches_missing
from gradscope.checks.causes.finding import Finding, Recogniser
from gradscope.checks.causes.order import parameters_moved, stepped_early, zero_grad_inside, zero_grad_missing
from gradscope.checks.causes.regularizer import regularizer_repeated
from gradscope.checks.causes.transforms import clipped_before_unscaling, clipped_inside, scale_changed, scales_apart
from gradscope.checks.judge import Judged

RECOGNISERS: tuple[Recogniser, ...] = (
    stepped_early,
    parameters_moved,
    zero_grad_missing,
    clipped_inside,
    zero_grad_inside,
    clipped_before_unscaling,
    scale_changed,
    micro_batches_missing,
    scales_apart,
    regularizer_repeated,
    counted_wrongly,
)


def find_causes(windows: Sequence[Judged]) -> list[Finding]:
    """What every recogniser found, the likeliest first; empty where none knows the signature.

    A loop that divides by the number of micro-batches is a mean of means on uneven splits, whatever else is wrong with
    it: what even splits show comes first then.
    """
    found = _recognised(windows)
    even = [w for w in windows if len(set(w.sizes)) == 1]
    if all(w.right for w in even) or (found and found[0].cause != "mean of means"):
        return found
    first = _recognised(even)
    uneven = _recognised([w for w in windows if len(set(w.sizes)) > 1]) if first and not found else []
    return first + [f for f in found or uneven if f.cause not in {g.cause for g in first}]


def _recognised(windows: Sequence[Judged]) -> list[Finding]:
    found = [finding for recognise in RECOGNISERS if (finding := recognise(windows)) is not None]
    # Once the parameters moved, how much a micro-batch counted at the window's start means nothing.
    return found[:1] if found and found[0].cause in ("stepped too early", "parameters changed inside window") else found


__all__ = ["Finding", "find_causes"]
