"""The samples that stand out in a window, for every layer that a report may show, before the norms are let go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch

from gradscope.summary.samples import FOLDED, unit_outliers, unit_sample_norms
from gradscope.summary.units import Folding, units
from gradscope.window import ParameterInfo, Window

Worst = Mapping[str | None, tuple[tuple[int, float], ...]]


def worst_of(parameters: Sequence[ParameterInfo], window: Window) -> Worst:
    """Samples that stand out, per layer, per layer with all below it, and for the whole model under ``None``.

    What the window noted itself is kept as it is.
    """
    if all(sums.sample_sq_norms is None for sums in window.parameters.values()):
        return window.worst
    model = units(parameters)
    order = list(dict.fromkeys(chain(model.layers, *model.groups, (model.total,))))
    present = torch.tensor([info.name in window.parameters for info in parameters])
    norms = unit_sample_norms(parameters, window, present, Folding.of(order))
    layers = set(model.layers)
    found: dict[str | None, tuple[tuple[int, float], ...]] = {}
    for unit, outliers in zip(order, unit_outliers(model, order, norms, window), strict=True):
        key = None if unit == model.total else unit.name + ("" if unit in layers else FOLDED)
        if outliers:
            found[key] = tuple((outlier.index, outlier.ratio) for outlier in outliers)
    return found | dict(window.worst)
