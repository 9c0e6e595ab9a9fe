"""The samples that stand out in a window, for every layer that a report may show, before the norms are let go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from gradscope.summary.samples import FOLDED, unit_outliers, unit_sample_norms
from gradscope.summary.units import Folding, Unit, Units, units
from gradscope.window import ParameterInfo, Window

Worst = Mapping[str | None, tuple[tuple[int, float], ...]]


def worst_of(parameters: Sequence[ParameterInfo], window: Window) -> Worst:
    """Samples that stand out, per layer, per layer with all below it, and for the whole model under ``None``.

    What the window noted itself is kept as it is.
    """
    if all(sums.sample_sq_norms is None for sums in window.parameters.values()):
        return window.worst
    model, order, keys, folding = _shown(tuple(parameters))
    present = np.array([info.name in window.parameters for info in parameters], dtype=bool)
    norms = unit_sample_norms(parameters, window, present, folding)
    found = {
        key: tuple((outlier.index, outlier.ratio) for outlier in outliers)
        for key, outliers in zip(keys, unit_outliers(model, order, norms, window), strict=True)
        if outliers
    }
    return found | dict(window.worst)


# A model's table is the same in every window, and taking it apart costs more than all the rest.
@lru_cache(maxsize=4)
def _shown(parameters: tuple[ParameterInfo, ...]) -> tuple[Units, tuple[Unit, ...], tuple[str | None, ...], Folding]:
    model = units(parameters)
    order = tuple(dict.fromkeys(chain(model.layers, *model.groups, (model.total,))))
    layers = set(model.layers)
    keys = (unit.name if unit in layers else unit.name + FOLDED for unit in order[:-1])
    return model, order, (*keys, None), Folding.of(order)
