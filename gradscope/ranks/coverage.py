"""How a parameter was measured on all ranks together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt

import torch

from gradscope.coverage import Coverage
from gradscope.judgement import allowed
from gradscope.ranks.differences import on
from gradscope.ranks.totals import Totals

#: What made the figures of a parameter that only whole gradients are known of.
BY_RANKS = "local and reduced gradients"
HOW = "from how the gradients of ranks and micro-steps differ, not sample by sample"
NOT_AGREED = "it is newer than watch, and what ranks tell each other was agreed then: watch again"
NOT_REDUCED = "its gradient was not reduced over ranks in this window"
UNEQUAL = (
    "ranks hold different gradients of it after the backward: they were not synchronised (the model inside the wrapper called "
    "directly, or a parameter that the wrapper ignores)"
)

#: A larger relative difference than this between the reduced gradient and the ranks' is no rounding of what was sent.
NOT_ROUNDING = 2e-2

#: Where some parameter's differs by more, the others' must be better than this: a random direction may be blind to a difference.
CERTAINLY_RIGHT = 1e-3


def merged_coverage(
    own: Coverage, name: str, totals: Totals, words: Sequence[Mapping[str, str]], *, by_parts: bool
) -> Coverage:
    """The worst of all ranks, and what only all of them together can show.

    Args:
        own: this rank's.
        name: the parameter's.
        totals: of the window.
        words: each rank's reasons, by parameter name.
        by_parts: no rank knows its samples.
    """
    row = totals.rows[name]
    if row.arrived == 0:
        return own
    if row.unreduced:
        return Coverage("not measured", own.rule, NOT_REDUCED)
    if totals.unequal(row):
        return Coverage("mismatch", own.rule, UNEQUAL)
    error = sqrt(row.errors / row.checked) if row.checked else float("nan")
    if name in totals.offs:
        off = totals.offs[name]
        error = off if error != error else max(error, off)
        if not off <= (NOT_ROUNDING if totals.furthest <= NOT_ROUNDING else CERTAINLY_RIGHT):
            text = f"the reduced gradient differs from what the ranks computed by {off:.1e} (a communication hook?)"
            return Coverage("mismatch", own.rule, text, error)
    if row.mismatch:
        return Coverage("mismatch", own.rule, _reason(own, name, words), error)
    if row.withheld or by_parts:
        return _by_parts(own, name, totals, words)
    rule = own.rule or "another rank's"
    if row.estimated:
        return Coverage("estimated", rule, own.reason, error)
    reason = own.reason if own.measured else ""
    return Coverage("second pass" if row.second_pass else "exact", rule, reason, error)


def _by_parts(own: Coverage, name: str, totals: Totals, words: Sequence[Mapping[str, str]]) -> Coverage:
    reason = _reason(own, name, words)
    if totals.rows[name].spoiled or not totals.part_weight_sq_sum < 1:
        return Coverage("not measured", own.rule, reason)
    return Coverage("estimated", BY_RANKS, f"{HOW}: {reason}" if totals.rows[name].withheld and reason else HOW)


def _reason(own: Coverage, name: str, words: Sequence[Mapping[str, str]]) -> str:
    """Why, by this rank or by another."""
    if own.reason and not own.measured:
        return own.reason
    ranks = [rank for rank, found in enumerate(words) if name in found]
    return f"on {on(ranks)}: {words[ranks[0]][name]}" if ranks else "another rank could not measure it"


def rounded(totals: Totals, coarsest: torch.dtype) -> Iterator[str]:
    """What is said where the reduced gradients have fewer digits than those that were reduced.

    Args:
        totals: of the window.
        coarsest: precision of the gradients.
    """
    if allowed(coarsest, 1) < totals.furthest <= NOT_ROUNDING:
        yield f"gradients were rounded on their way between ranks, by up to {totals.furthest:.1e} (a communication hook?)"
