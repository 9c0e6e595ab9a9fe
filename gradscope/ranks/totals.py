"""What all ranks know of a window together; the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite, sqrt

from gradscope.ranks.numbers import Head, Row, looks

#: Relative difference of two ranks' squared norms of one gradient that is no rounding: what is reduced is the same, bit for bit.
UNEQUAL = 1e-5

#: Relative difference between the reduced gradient and the sum of what ranks computed that is taken for a factor of its own.
FACTOR_UNSURE = 2e-2


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """Sums over ranks.

    Attributes:
        heads: each rank's own numbers.
        rows: per parameter name.
        one_copy: every part of a gradient is on one rank only (or was divided by its copies): else each rank has all of it.
        factor: what the sum of the ranks' gradients is multiplied with to give the reduced one: one over their number.
        offs: relative differences between the reduced gradient and ``factor`` times the sum of what the ranks computed, by name
            of a parameter that was reduced and is finite; empty where ranks looked along different directions.
        furthest: the largest of them.
    """

    heads: Sequence[Head]
    rows: Mapping[str, Row]
    one_copy: bool
    factor: float
    offs: Mapping[str, float] = field(default_factory=dict)
    furthest: float = 0.0

    @property
    def comparable(self) -> bool:
        """Whether all ranks probed along the same directions."""
        return len({head.directions for head in self.heads}) == 1 and self.heads[0].directions >= 0

    @property
    def samples(self) -> int:
        """``n`` of all ranks."""
        return round(sum(head.samples for head in self.heads))

    @property
    def weight(self) -> float:
        """``Σuᵢ`` of all ranks; NaN where a rank's weights did not fit."""
        return sum(head.weight for head in self.heads)

    @property
    def weight_sq_sum(self) -> float:
        """``V₂`` over all ranks' samples; 1 where there are none."""
        return sum(head.weight_sq for head in self.heads) / self.weight**2 if self.weight else 1.0

    @property
    def part_weight_sq_sum(self) -> float:
        """``Σ Wⱼ²`` over all micro-steps of all ranks; 1 where there are none."""
        return sum(head.part_weight_sq for head in self.heads) / self.weight**2 if self.weight else 1.0

    def copies(self, row: Row) -> float:
        """How many ranks sent the whole of a parameter's gradient."""
        return 1.0 if self.one_copy else max(row.arrived, 1.0)

    def grad_sq(self, row: Row) -> float:
        """``‖ḡ‖²`` of a parameter's reduced gradient."""
        return row.grad_sq / self.copies(row)

    def unequal(self, row: Row) -> bool:
        """Whether ranks hold different gradients."""
        if self.one_copy or row.arrived < 2:
            return False
        mean = row.grad_sq / row.arrived
        return row.grad_sq_sq / row.arrived - mean * mean > (UNEQUAL * mean) ** 2


def compared(totals: Totals) -> Totals:
    """With ``offs``, where all ranks have the same directions."""
    if not totals.comparable:
        return totals
    whole = sqrt(max(sum(totals.grad_sq(row) for row in totals.rows.values()), 0.0))
    offs = {
        name: _off(totals, row, whole)
        for name, row in totals.rows.items()
        if row.arrived and not row.unreduced and isfinite(totals.grad_sq(row))
    }
    return replace(totals, offs=offs, furthest=max(offs.values(), default=0.0))


def _off(totals: Totals, row: Row, whole: float) -> float:
    copies, factor = totals.copies(row), totals.factor
    rest = [factor * here - reduced / copies for here, reduced in zip(row.here, row.reduced, strict=True)]
    # The mean over random directions estimates the square of the whole difference.
    number = 2 if looks(totals.heads[0].directions) == slice(0, 2) else 1
    difference = sqrt(sum(x * x for x in rest) / number)
    typical = max(sqrt(max(totals.grad_sq(row), 0.0)), factor * sqrt(max(row.part_sq, 0.0)), 1e-6 * whole)
    return difference / typical if typical else 0.0


def found_factor(totals: Totals, usual: float) -> float:
    """What the sum of the ranks' gradients was multiplied with: by the probes, where all ranks have the same directions.

    Args:
        totals: with any factor.
        usual: what it is by default; taken where nothing else is sure.
    """
    pairs = [
        (here, reduced / totals.copies(row))
        for row in totals.rows.values()
        for here, reduced in zip(row.here, row.reduced, strict=True)
    ]
    square = sum(here * here for here, _ in pairs)
    if not 0 < square < float("inf"):
        return usual
    factor = sum(here * reduced for here, reduced in pairs) / square
    rest = sum((factor * here - reduced) ** 2 for here, reduced in pairs)
    size = sum(reduced * reduced for _, reduced in pairs)
    if not (factor > 0 and rest <= FACTOR_UNSURE**2 * size):
        return usual
    return next((x for x in (usual, 1.0) if abs(factor - x) <= FACTOR_UNSURE * x), factor)
