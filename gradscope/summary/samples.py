"""The newest window sample by sample: norms, and the samples that stand out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.report import Outlier
from gradscope.statistics.outliers import outliers
from gradscope.statistics.sample_norms import sample_norms
from gradscope.summary.units import Folding, Unit, Units
from gradscope.window import ParameterInfo, Window

#: In ``Window.worst``, marks a layer with everything below it, where its name alone means what it owns itself.
FOLDED = ".*"


class Norms(NamedTuple):
    """``‖gᵢ‖`` per unit, ``[U, n]``, and which units have them, ``[U]``."""

    rows: NDArray[np.float64]
    known: NDArray[np.bool_]

    def tensors(self) -> list[Tensor | None]:
        """Row by row; None where there are none."""
        rows = torch.from_numpy(self.rows).unbind()
        return [row if known else None for row, known in zip(rows, self.known.tolist(), strict=True)]


def unit_sample_norms(
    parameters: Sequence[ParameterInfo], newest: Window, present: NDArray[np.bool_], folding: Folding
) -> Norms:
    """``‖gᵢ‖`` per unit, squares summed over the parameters that have them by sample."""
    records = [
        newest.parameters.get(info.name) if here else None for info, here in zip(parameters, present, strict=True)
    ]
    found = [None if record is None else record.sample_sq_norms for record in records]
    having = [p for p, norms in enumerate(found) if norms is not None]
    if not having:
        return Norms(np.zeros((folding.units, newest.samples)), np.zeros(folding.units, dtype=bool))
    squares = torch.stack([norms for norms in found if norms is not None]).double().numpy()
    available = np.zeros(len(found), dtype=bool)
    available[having] = True
    if len(having) < len(found):
        whole = np.zeros((len(found), newest.samples))
        whole[having] = squares
        squares = whole
    weights = newest.weights
    shares = np.full(newest.samples, 1 / newest.samples) if weights is None else weights.double().numpy()
    return Norms(sample_norms(folding.rows(squares), shares), folding.any(available))


def unit_outliers(all_units: Units, order: Sequence[Unit], norms: Norms, newest: Window) -> list[tuple[Outlier, ...]]:
    """The samples that stand out, per unit: from the norms, or as the window noted them when its norms were let go."""
    if norms.known.any():
        rows = outliers(norms.rows)
        found = [row if known else () for row, known in zip(rows, norms.known.tolist(), strict=True)]
    else:
        noted = {unit: newest.worst.get(unit.name + FOLDED, ()) for level in all_units.groups for unit in level}
        noted |= {layer: newest.worst.get(layer.name, ()) for layer in all_units.layers}
        noted[all_units.total] = newest.worst.get(None, ())
        found = [noted.get(unit, ()) for unit in order]
    return [tuple(Outlier(i, newest.ids[i] if newest.ids else None, ratio) for i, ratio in row) for row in found]
