"""Everything that is computed before the records are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gradscope.summary.figures import Figures, figures
from gradscope.summary.samples import unit_sample_norms
from gradscope.summary.series import Series, Sums, series, sums
from gradscope.summary.units import Folding, Unit, Units, units
from gradscope.window import ParameterInfo, Window


@dataclass(frozen=True, slots=True, eq=False)
class Digest:
    """The windows, digested: ``order`` fixes which column, or list entry, belongs to which unit.

    Attributes:
        parameters: of the model.
        windows: oldest first, at least one.
        model: the units of the model.
        order: all units.
        folding: parameters to units.
        sums: per window and parameter.
        series: per window and unit.
        figures: per unit.
        norms: ``‖gᵢ‖`` of the newest window, per unit.
    """

    parameters: Sequence[ParameterInfo]
    windows: Sequence[Window]
    model: Units
    order: tuple[Unit, ...]
    folding: Folding
    sums: Sums
    series: Series
    figures: Figures
    norms: list[Tensor | None]

    @property
    def newest(self) -> Window:
        """The last window."""
        return self.windows[-1]

    @property
    def total(self) -> int:
        """Where the whole model stands in ``order``."""
        return self.order.index(self.model.total)


def digest(parameters: Sequence[ParameterInfo], windows: Sequence[Window]) -> Digest:
    """The windows, digested."""
    model = units(parameters)
    order = model.distinct()
    folding = Folding.of(order)
    gathered = sums(parameters, windows)
    found = series(gathered, windows, folding)
    values = figures(parameters, windows, gathered, found, folding)
    norms = unit_sample_norms(parameters, windows[-1], gathered.present, folding)
    return Digest(parameters, windows, model, order, folding, gathered, found, values, norms)
