"""Ratios of one tool's steps to the plain steps beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles


@dataclass(frozen=True, slots=True)
class Ratios:
    """What the table prints.

    Attributes:
        median: of the ratios of one round each.
        low: their lower quartile.
        high: their upper quartile.
        mean: ratio of the sums: what a long run pays, guard windows and skipped ones included.
        runs: how many rounds.
    """

    median: float
    low: float
    high: float
    mean: float
    runs: int


def ratios(plain: Sequence[float], tool: Sequence[float]) -> Ratios:
    """Of times taken in the same rounds, in seconds.

    Raises:
        ValueError: there are none, or their numbers differ.
    """
    each = [ours / theirs for ours, theirs in zip(tool, plain, strict=True)]
    if not each:
        raise ValueError("no round was timed")
    low, _, high = quantiles(each, n=4, method="inclusive") if len(each) > 1 else (each[0],) * 3
    return Ratios(median(each), low, high, fmean(tool) / fmean(plain), len(each))
