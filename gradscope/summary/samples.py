"""The newest window sample by sample: norms, and the samples that stand out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.report import Outlier
from gradscope.statistics.outliers import outliers
from gradscope.statistics.sample_norms import sample_norms
from gradscope.summary.units import Folding, Unit, Units
from gradscope.window import ParameterInfo, Window

#: In ``Window.worst``, marks a layer with everything below it, where its name alone means what it owns itself.
FOLDED = ".*"


def unit_sample_norms(
    parameters: Sequence[ParameterInfo], newest: Window, present: Tensor, folding: Folding
) -> list[Tensor | None]:
    """``‖gᵢ‖`` per unit, ``[n]``, squares summed over the parameters that have them by sample; None where none has."""
    available = torch.zeros(len(parameters), dtype=torch.bool)
    squares = torch.zeros((len(parameters), newest.samples), dtype=torch.float64)
    for p, info in enumerate(parameters):
        found = newest.parameters.get(info.name)
        if present[p] and found is not None and found.sample_sq_norms is not None:
            available[p] = True
            squares[p] = found.sample_sq_norms
    if not bool(available.any()):
        return [None] * folding.units
    weights = newest.weights
    if weights is None:
        weights = torch.full((newest.samples,), 1 / newest.samples, dtype=torch.float64)
    norms = sample_norms(folding.rows(squares), weights.to(squares))
    return [row if has else None for row, has in zip(norms, folding.any(available).tolist(), strict=True)]


def unit_outliers(
    all_units: Units, order: Sequence[Unit], norms: Sequence[Tensor | None], newest: Window
) -> list[tuple[Outlier, ...]]:
    """The samples that stand out, per unit: from the norms, or as the window noted them when its norms were let go."""
    found: list[tuple[tuple[int, float], ...]] = [() for _ in order]
    having = [u for u, row in enumerate(norms) if row is not None]
    if having:
        rows = outliers(torch.stack([row for row in norms if row is not None]))
        for u, row in zip(having, rows, strict=True):
            found[u] = row
    else:
        noted = {unit: newest.worst.get(unit.name + FOLDED, ()) for level in all_units.groups for unit in level}
        noted |= {layer: newest.worst.get(layer.name, ()) for layer in all_units.layers}
        noted[all_units.total] = newest.worst.get(None, ())
        found = [noted.get(unit, ()) for unit in order]
    return [tuple(Outlier(i, newest.ids[i] if newest.ids else None, ratio) for i, ratio in row) for row in found]
