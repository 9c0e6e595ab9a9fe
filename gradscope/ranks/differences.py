"""What differs between ranks, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gradscope.ranks.numbers import Head
from gradscope.ranks.totals import Totals

#: More ranks than this are not listed one by one.
LISTED = 8


def differences(totals: Totals, usual: float) -> Iterator[str]:
    """One line for each thing that is not the same on all ranks, or not what averaging gives.

    Args:
        totals: of a window.
        usual: what the sum of the ranks' gradients is multiplied with by default.
    """
    heads = totals.heads
    if _differ(heads, "samples"):
        share = max(head.samples for head in heads) / max(min(head.samples for head in heads), 1.0)
        yield (
            f"ranks had different numbers of samples ({_listed(heads, 'samples')}): where each takes the mean over its own, a "
            f"sample counts up to {share:.3g} times as much on one rank as on another"
        )
    if _differ(heads, "micro_steps"):
        yield f"ranks had different numbers of micro-steps ({_listed(heads, 'micro_steps')})"
    if _differ(heads, "number"):
        yield uneven(heads)
    if totals.factor != usual:
        yield f"gradients of ranks are multiplied with {totals.factor:.6g} and added, not averaged (which would be {usual:.3g})"


def uneven(heads: Sequence[Head]) -> str:
    """What is said where ranks have closed different numbers of windows."""
    return (
        f"ranks have stepped a different number of times ({_listed(heads, 'number')}): a step was skipped on some of them "
        "only, and their parameters are not the same any more"
    )


def said(words: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """The notices of all ranks, each once; where not all have it, with theirs."""
    texts: dict[str, list[int]] = {}
    for rank, found in enumerate(words):
        for key, text in found.items():
            if key.startswith("\n"):
                texts.setdefault(text, []).append(rank)
    for text, ranks in texts.items():
        yield text if len(ranks) == len(words) else f"{on(ranks)}: {text}"


def on(ranks: Sequence[int]) -> str:
    """Which ranks, in words."""
    rest = f" and {len(ranks) - LISTED} more" if len(ranks) > LISTED else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:LISTED]))}{rest}"


def _differ(heads: Sequence[Head], field: str) -> bool:
    return len({getattr(head, field) for head in heads}) > 1


def _listed(heads: Sequence[Head], field: str) -> str:
    values = [round(getattr(head, field)) for head in heads]
    if len(values) <= LISTED:
        return ", ".join(map(str, values))
    low, high = values.index(min(values)), values.index(max(values))
    return f"from {values[low]} on rank {low} to {values[high]} on rank {high}"
