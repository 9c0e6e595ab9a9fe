"""Micro-steps' increments into one effective minibatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradscope.accumulator import OpenWindow
from gradscope.coverage import Coverage
from gradscope.increments.increment import Increment
from gradscope.judgement import Judged
from gradscope.moments.leaf import Arrival, Leaf
from gradscope.statistics.two_sizes import contribution_sq_sum_of_parts
from gradscope.window import ParameterSums, Window
from gradscope.window_sums import AdamState

#: What made the figures, as coverage names it.
RULE = "micro-steps"
HOW = "from how the micro-steps of a window differ, not sample by sample"
ONE_MICRO_STEP = (
    "a window of one micro-step has nothing to compare with: split its batch into two or more micro-steps (gradient "
    "accumulation), or let samples be told apart with capture=True"
)
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

    def close(self, index: int, *, scale: float, adam: Mapping[int, AdamState]) -> Window:
        """The window, from all that was added; see ``OpenWindow.close``."""
        weights, ids = self._weights()
        share = weights / weights.sum()
        # A window whose samples were never seen has parameters' reasons, and no figures.
        v2 = float(share.square().sum()) if self.steps else 1.0
        if len({step.samples for step in self.steps}) > 1 and all(step.weights is None for step in self.steps):
            self.notices.append(UNEVEN)
        if len(self.steps) == 1 and not self.shared:
            self.notices.append("one micro-step: counted, but in no mean and no interval")
        sizes = self._sizes()
        coverage = {leaf.info.name: self._cover(leaf, self._made(leaf)) for leaf in self.leaves}
        sums: dict[str, ParameterSums] = {}
        for leaf in self.leaves:
            found = coverage[leaf.info.name]
            if leaf.index in sizes and (found.measured or found.reason == ONE_MICRO_STEP):
                total, parts = (size / (scale * scale) for size in sizes[leaf.index])
                sums[leaf.info.name] = ParameterSums(total, self._contributions(total, parts, share, v2))
        return Window(
            index=index,
            samples=int(weights.numel()),
            micro_steps=len(self.steps),
            weight_sq_sum=v2,
            parameters=sums,
            coverage=coverage,
            weights=share,
            ids=ids,
            notices=tuple(dict.fromkeys(self.notices)),
        )

    def _contributions(self, total: float, parts: float, share: Tensor, v2: float) -> float:
        """``Σ‖hᵢ‖²``, estimated; NaN with one micro-step."""
        shares = torch.stack([part.sum() for part in share.split([step.samples for step in self.steps])])
        numbers = (torch.tensor(x, dtype=torch.float64) for x in (total, parts, float(shares.square().sum()), v2))
        return float(contribution_sq_sum_of_parts(*numbers))

    def _made(self, leaf: Leaf) -> list[Judged | None]:
        """How each micro-step's increment of a parameter is known."""
        records = [step.measured.get(leaf.index) for step in self.steps]
        known = (
            Coverage("estimated", RULE, HOW) if len(self.steps) > 1 else Coverage("not measured", "", ONE_MICRO_STEP)
        )
        return [
            None
            if record is None or record.arrival is None
            else Judged(Coverage("not measured", reason=record.reason) if record.reason else known, float("nan"))
            for record in records
        ]

    def _sizes(self) -> dict[int, tuple[float, float]]:
        """Per parameter ``‖ḡ‖²`` and ``Σ‖Δⱼ‖²``, still times the loss's scale squared."""
        increments: list[tuple[int, Increment]] = [
            (index, record.arrival)
            for step in self.steps
            for index, record in step.measured.items()
            if isinstance(record.arrival, Increment)
        ]
        numbers = _host([x for _, one in increments for x in (one.squared_norm, one.total)])
        found: dict[int, tuple[float, float]] = {}
        for (index, one), squared_norm, total in zip(increments, numbers[::2], numbers[1::2], strict=True):
            if one.on_top and abs(total - squared_norm) > ROUNDING * squared_norm:
                self.problems[index] = NOT_EMPTY
            found[index] = total, found.get(index, (0.0, 0.0))[1] + squared_norm
        return found


def _host(numbers: Sequence[Tensor]) -> list[float]:
    """These numbers on the host, by one transfer for each device and precision."""
    found = [0.0] * len(numbers)
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for k, number in enumerate(numbers):
        alike.setdefault((number.device, number.dtype), []).append(k)
    for places in alike.values():
        values = torch.stack([numbers[k] for k in places]).tolist()
        for k, value in zip(places, values, strict=True):
            found[k] = value
    return found
