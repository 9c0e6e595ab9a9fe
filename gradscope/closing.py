"""From an effective minibatch that has ended to its sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from gradscope.columns import CoverageColumns, SumColumns
from gradscope.coverage import STATUSES, Coverage
from gradscope.judgement import Judged
from gradscope.moments.arrival import Arrival
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import Measured, MicroStep, coarsest
from gradscope.trust import Trust
from gradscope.verdicts import Verdicts, verdicts
from gradscope.window import ParameterSums, Window
from gradscope.window_sums import AdamState, Parts, bring_norms, parameter_sums, shares, sum_columns, weighed_by_adam

#: Of a parameter that is split over ranks.
NEVER_WHOLE = (
    "no layer was seen holding all of it: it is split over ranks while its layer runs (tensor parallelism), or not used"
)
UNSEEN = Coverage("not measured")
_NAN = float("nan")
NOT_ITS_TURN = "it was frozen in this window, which is another optimizer's"
VANISHING = (
    "its gradient is so small that squares of its elements are no numbers of their precision any more: multiply the loss by "
    "a power of two (a GradScaler does), or train in double precision"
)
#: Mean square of a contribution's elements from which on sums of squares keep their digits, over the smallest number that is
#: stored with all of its digits. What is multiplied on the way may be a hundred times smaller than what comes of it.
ROOM = 1e3


def smallest(leaf: Leaf) -> float:
    """``‖hᵢ‖²`` of one parameter, averaged over samples, from which on sums of squares keep their digits."""
    parameter = leaf.parameter
    # Half precision is squared in single.
    dtype = torch.float32 if parameter.dtype in (torch.float16, torch.bfloat16) else parameter.dtype
    return ROOM * torch.finfo(dtype).tiny * leaf.info.numel


class Closing:
    """The end of a window; what it reads is set while the window is filled.

    Attributes:
        leaves: all parameters.
        places: where each stands, by name.
        steps: the window's micro-steps.
        grad_sq: ``‖ḡ‖²`` by parameter index, on its device, or the arrival that it is of.
        grads: ``ḡ``, with ``moments=True``.
        weighed: elementwise squares as the optimizer weighs them.
        problems: why a parameter's figures are withheld.
        arrived: parameters that something reached.
        frozen: those that asked for no gradient when the window ended; None while it is open.
        notices: what else is to be said.
        trust: what earlier windows have taught.
        newest: whether what only the newest window keeps is still wanted.
    """

    leaves: Sequence[Leaf]
    places: Mapping[str, int]
    steps: list[MicroStep]
    grad_sq: dict[int, Tensor | Arrival]
    grads: dict[int, Tensor]
    weighed: dict[int, Tensor]
    problems: dict[int, str]
    arrived: set[int]
    frozen: frozenset[int] | None
    notices: list[str]
    trust: Trust
    newest: bool
    #: By parameter index what is ``smallest``.
    least: Sequence[float]
    #: How the parameters of the last window were covered.
    _ways: list[Sequence[Coverage]]
    #: Some ways, and whether each is one of being measured.
    _measured: list[Any]

    def weigh(self, adam: Mapping[int, AdamState]) -> None:
        """Note the elementwise squares as the optimizer weighs them now; its state goes on.

        Args:
            adam: what the optimizer knows, by parameter index; may be empty.
        """
        for index, state in adam.items():
            if index in self.grads and index not in self.weighed:
                found = weighed_by_adam(self.grads[index], self.steps, index, state)
                if found is not None:
                    self.weighed[index] = found

    def close(
        self, index: int, *, scale: float, adam: Mapping[int, AdamState], found: Verdicts | None = None
    ) -> Window:
        """The window, from all that was added.

        Args:
            index: its number.
            scale: what the loss was multiplied with (GradScaler); divided out of every figure.
            adam: what the optimizer knows, by parameter index; may be empty.
            found: the verdicts, where those of several windows were made at once.
        """
        found = found or verdicts([self])[0]
        self.weigh(adam)
        share, v2, ids = shares(self.steps)
        if self.newest:
            bring_norms(self.steps)
        lost = self._vanishing(found)
        # What is wrong with a gradient that vanishes is no fault of its attribution.
        looked_at = [leaf.index for leaf in self.leaves if leaf.index not in lost] if found.signed else []
        everything = {index: found.of(index) for index in looked_at}
        self.trust.remember(index, everything, found.guarded)
        ways, errors, own_sq = self._judged(found, lost)
        if ways == self._ways[0]:
            # One object for all windows that were covered alike.
            ways = self._ways[0]
        self._ways[0] = ways
        coverage = CoverageColumns(self.places, ways, errors)
        steps = self.steps
        return Window(
            index=index,
            samples=sum(step.samples for step in steps),
            micro_steps=len(steps),
            weight_sq_sum=v2,
            parameters=self._columns(ways, own_sq, found.grad_sq, scale, v2),
            coverage=coverage,
            weights=share if self.newest else None,
            ids=ids,
            held_bytes=max((step.peak_bytes for step in steps), default=0),
            notices=tuple(dict.fromkeys([*self.notices, *(n for step in steps for n in step.notices)])),
        )

    def _frozen(self) -> frozenset[int]:
        return frozenset(leaf.index for leaf in self.leaves if not leaf.parameter.requires_grad)

    def _judged(self, found: Verdicts, lost: set[int]) -> tuple[Sequence[Coverage], Sequence[float], Sequence[float]]:
        """Per parameter: how it is covered, the error, and ``Σ‖hᵢ‖²`` times the scale squared."""
        count, right = len(self.leaves), found.right
        aside = lost | self.problems.keys() | (self._frozen() if self.frozen is None else self.frozen)
        if aside:
            right = right.of_only([index not in aside for index in right.indices])
        doubtful = self.trust.explained(right.indices, right.squares, right.bounds)
        for leaf in self.leaves:
            leaf.mismatched = False
        if len(right.indices) == count and not doubtful:
            return right.ways, right.errors, right.own_sq
        ways, errors, own_sq = [UNSEEN] * count, [_NAN] * count, [_NAN] * count
        for index, way, error, own in zip(right.indices, right.ways, right.errors, right.own_sq, strict=True):
            ways[index], errors[index], own_sq[index] = way, error, own
        for index in doubtful | (set(range(count)) - set(right.indices)):
            leaf, judged = self.leaves[index], found.of(index)
            one = self._cover(leaf, judged, vanishes=index in lost)
            leaf.mismatched = one.status == "mismatch"
            ways[index], errors[index] = one, one.error
            own_sq[index] = sum(part.own_sq for part in judged if part is not None)
        return ways, errors, own_sq

    def _vanishing(self, found: Verdicts) -> set[int]:
        """Parameters whose gradients have squares that are too small for their precision; zero itself is not."""
        samples, right, lost = sum(step.samples for step in self.steps), found.right, set[int]()
        own_sq = dict(zip(right.indices, right.own_sq, strict=True))
        for index, total in found.grad_sq.items() if self.least else ():
            least, own = samples * self.least[index], own_sq.get(index, _NAN)
            # A sum of n contributions is up to n times as large, squared, as they are together.
            if own >= least or total >= samples * least:
                continue
            if index not in own_sq:
                own = sum(part.own_sq for part in found.of(index) if part is not None)
                # Where something is withheld already, the sum has to tell.
                if not (own < least if own == own else total < least):
                    continue
            if any(_is_something(step.measured[index]) for step in self.steps if index in step.measured):
                lost.add(index)
        return lost

    def _columns(
        self, ways: Sequence[Coverage], own_sq: Sequence[float], grad_sq: Mapping[int, float], scale: float, v2: float
    ) -> SumColumns:
        shown: Sequence[bool] = self._measured[1]
        if self._measured[0] is not ways:
            shown = [way.measured for way in ways]
            self._measured[:] = ways, shown
        if len(grad_sq) < len(ways):
            shown = [known and index in grad_sq for index, known in enumerate(shown)]
        totals = list(map(grad_sq.get, range(len(ways)), repeat(_NAN)))
        full: dict[str, ParameterSums] = {}
        for leaf, way, is_shown in zip(self.leaves, ways, shown, strict=True) if self.newest or self.weighed else ():
            i = leaf.index
            if is_shown:
                parts = Parts(i, self.steps, own_sq[i], totals[i], self.grads.get(i), scale, v2)
                by_sample = way.status in ("exact", "second pass")
                full[leaf.info.name] = parameter_sums(parts, by_sample=by_sample, weighed=self.weighed.get(i))
        found = sum_columns(self.places, shown, totals, own_sq, full, scale)
        return found if self.newest else found.bare()

    def _cover(self, leaf: Leaf, parts: Sequence[Judged | None], *, vanishes: bool = False) -> Coverage:
        if leaf.ignored:
            return Coverage("not measured", reason=leaf.ignored)
        if leaf.index in self.frozen if self.frozen is not None else not leaf.parameter.requires_grad:
            return Coverage("no gradient", reason=NOT_ITS_TURN) if leaf.in_turn else Coverage("frozen")
        if leaf.index not in self.arrived:
            unseen = leaf.sharded and leaf.live is leaf.parameter
            return Coverage("not measured", reason=NEVER_WHOLE) if unseen else Coverage("no gradient")
        if leaf.index in self.problems:
            return Coverage("not measured", reason=self.problems[leaf.index])
        known = [part.coverage for part in parts if part is not None]
        if not known:
            return Coverage("not measured", reason="its gradient came without a forward that was seen")
        worst = known[0] if len(known) == 1 else max(known, key=lambda one: STATUSES.index(one.status))
        if vanishes and (worst.measured or worst.status == "mismatch"):
            return Coverage("not measured", worst.rule, VANISHING)
        if worst.measured and worst.status != "estimated" and leaf.index in self.trust.distrusted:
            return Coverage("mismatch", worst.rule, self.trust.distrusted[leaf.index], worst.error)
        errors = [one.error for one in known if one.error == one.error]
        if errors and (worst.measured or not any(part.by_guard for part in parts if part is not None)):
            dtype = coarsest(*{step.measured[leaf.index].dtype for step in self.steps if leaf.index in step.measured})
            text = self.trust.lasting(leaf.index, errors, dtype)
            if text and worst.measured:
                return Coverage("mismatch", worst.rule, text, max(errors))
        if len(known) == 1:
            return worst
        reason = next((one.reason for one in known if one.status == worst.status and one.reason), worst.reason)
        return Coverage(worst.status, worst.rule, reason, max(errors, default=worst.error))


def _is_something(record: Measured) -> bool:
    """Whether something that is not zero reached a parameter, seen on numbers that are not squares."""
    looks = (record.probes, record.signed_probe, None if record.arrival is None else record.arrival.probe)
    return any(bool(look.any()) for look in looks if look is not None)
