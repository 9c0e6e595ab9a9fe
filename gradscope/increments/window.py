"""Micro-steps' increments into one effective minibatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gradscope.accumulator import OpenWindow
from gradscope.closing import VANISHING
from gradscope.coverage import Coverage
from gradscope.increments.increment import Increment
from gradscope.judgement import Judged
from gradscope.moments.arrival import Arrival
from gradscope.moments.leaf import Leaf
from gradscope.statistics.two_sizes import contribution_sq_sum_of_parts
from gradscope.verdicts import Verdicts
from gradscope.window import ParameterSums, Window
from gradscope.window_sums import AdamState, shares

#: What made the figures, as coverage names it.
RULE = "micro-steps"
HOW = "from how the micro-steps of a window differ, not sample by sample"
ONE_MICRO_STEP = (
    "a window of one micro-step has nothing to compare with: split its batch into two or more micro-steps (gradient "
    "accumulation), or let samples be told apart with capture=True"
)
ESTIMATED = Judged(Coverage("estimated", RULE, HOW), float("nan"))
ALONE = Judged(Coverage("not measured", reason=ONE_MICRO_STEP), float("nan"))
NOT_EMPTY = "its .grad held something when the window began (no zero_grad?), so that it is not the sum of what arrived"
UNEVEN = (
    "micro-steps of unequal size: each was taken to weigh as its samples do; where the loss weighs them otherwise (a mean per "
    "micro-step), say so with annotate(weights=...)"
)
#: Relative difference between two readings of the same numbers that their rounding explains.
ROUNDING = 1e-5


class IncrementWindow(OpenWindow):
    """The effective minibatch that is being filled, where only the size of each micro-step's increment is known.

    Args:
        leaves: all parameters.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        super().__init__(leaves, moments=False)
        self.by_parts = True

    def _note_grad(self, leaf: Leaf, arrival: Arrival) -> None:
        if isinstance(arrival, Increment):
            self.grad_sq[leaf.index] = arrival.total
            leaf.version = arrival.version

    def close(
        self, index: int, *, scale: float, adam: Mapping[int, AdamState], found: Verdicts | None = None
    ) -> Window:
        """The window, from all that was added; see ``OpenWindow.close``."""
        share, v2, ids = shares(self.steps)
        if len({step.samples for step in self.steps}) > 1 and all(step.weights is None for step in self.steps):
            self.notices.append(UNEVEN)
        if len(self.steps) == 1 and not self.shared:
            self.notices.append("one micro-step: counted, but in no mean and no interval")
        known = self._totals_and_parts()
        coverage = {leaf.info.name: self._cover(leaf, [self._made(leaf)]) for leaf in self.leaves}
        for leaf in self.leaves:
            total = known.get(leaf.index, [0.0])[0]
            if 0 < total < share.numel() * self.least[leaf.index] and coverage[leaf.info.name].measured:
                coverage[leaf.info.name] = Coverage("not measured", RULE, VANISHING)
        sums = self._sums(known, coverage, share, v2, scale)
        return Window(
            index=index,
            samples=share.numel(),
            micro_steps=len(self.steps),
            weight_sq_sum=v2,
            parameters=sums,
            coverage=coverage,
            weights=share,
            ids=ids,
            notices=tuple(dict.fromkeys(self.notices)),
        )

    def _sums(
        self, found: Mapping[int, list[float]], coverage: Mapping[str, Coverage], share: Tensor, v2: float, scale: float
    ) -> dict[str, ParameterSums]:
        """Every parameter's ``‖ḡ‖²`` and ``Σ‖hᵢ‖²``; the latter is estimated, and NaN with one micro-step."""
        shown = [
            leaf
            for leaf in self.leaves
            if leaf.index in found
            and (coverage[leaf.info.name].measured or coverage[leaf.info.name].reason == ONE_MICRO_STEP)
        ]
        if not shown:
            return {}
        sizes = [step.samples for step in self.steps]
        shares = [float(part.sum()) for part in share.split(sizes)]
        part_weight_sq_sum = np.array(sum(part * part for part in shares))
        totals, parts = np.array([found[leaf.index] for leaf in shown]).T / (scale * scale)
        contributions = contribution_sq_sum_of_parts(totals, parts, part_weight_sq_sum, np.array(v2))
        rows = zip(shown, totals.tolist(), contributions.tolist(), strict=True)
        return {leaf.info.name: ParameterSums(total, own) for leaf, total, own in rows}

    def _made(self, leaf: Leaf) -> Judged | None:
        """How a parameter's increments are known; None where there are none."""
        records = [step.measured[leaf.index] for step in self.steps if leaf.index in step.measured]
        if not any(record.arrival is not None for record in records):
            return None
        reason = next((record.reason for record in records if record.reason), "")
        if reason:
            return Judged(Coverage("not measured", reason=reason), float("nan"))
        return ESTIMATED if len(self.steps) > 1 else ALONE

    def _totals_and_parts(self) -> dict[int, list[float]]:
        """Per parameter ``‖ḡ‖²`` and ``Σ‖Δⱼ‖²``, still times the loss's scale squared."""
        increments: list[tuple[int, Increment]] = [
            (index, record.arrival)
            for step in self.steps
            for index, record in step.measured.items()
            if isinstance(record.arrival, Increment)
        ]
        numbers = _host([x for _, one in increments for x in (one.squared_norm, one.total)])
        found: dict[int, list[float]] = {}
        for (index, one), squared_norm, total in zip(increments, numbers[::2], numbers[1::2], strict=True):
            if one.on_top and abs(total - squared_norm) > ROUNDING * squared_norm:
                self.problems[index] = NOT_EMPTY
            found[index] = [total, (found[index][1] if index in found else 0.0) + squared_norm]
        return found


def _host(numbers: Sequence[Tensor]) -> list[float]:
    """These numbers on the host, by one transfer for each device."""
    found = [0.0] * len(numbers)
    places: dict[torch.device, list[int]] = {}
    for k, number in enumerate(numbers):
        places.setdefault(number.device, []).append(k)
    for own in places.values():
        values = torch.stack([numbers[k] for k in own]).tolist()
        for k, value in zip(own, values, strict=True):
            found[k] = value
    return found
