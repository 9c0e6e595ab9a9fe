"""Everything that is computed before the records are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradscope.summary.figures import Figures, figures
from gradscope.summary.samples import Norms, unit_sample_norms
from gradscope.summary.series import Series, Sums, series, sums
from gradscope.summary.units import Layout, layout
from gradscope.window import ParameterInfo, Window


@dataclass(frozen=True, slots=True, eq=False)
class Digest:
    """The windows, digested: ``layout.order`` fixes which column, or list entry, belongs to which unit.

    Attributes:
        parameters: of the model.
        windows: oldest first, at least one.
        layout: the units of the model.
        sums: per window and parameter.
        series: per window and unit.
        figures: per unit.
        norms: ``‖gᵢ‖`` of the newest window, per unit.
    """

    parameters: Sequence[ParameterInfo]
    windows: Sequence[Window]
    layout: Layout
    sums: Sums
    series: Series
    figures: Figures
    norms: Norms

    @property
    def newest(self) -> Window:
        """The last window."""
        return self.windows[-1]

    @property
    def total(self) -> int:
        """Where the whole model stands among the units."""
        return self.layout.total


def digest(parameters: Sequence[ParameterInfo], windows: Sequence[Window]) -> Digest:
    """The windows, digested."""
    model = layout(parameters)
    gathered = sums(model.names, windows)
    found = series(gathered, windows, model.folding)
    values = figures(model, windows, gathered, found)
    norms = unit_sample_norms(parameters, windows[-1], gathered.present, model.folding)
    return Digest(parameters, windows, model, gathered, found, values, norms)
