"""What a report speaks of: single parameters, layers, groups of layers, the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from gradscope.window import ParameterInfo


@dataclass(frozen=True, slots=True)
class Unit:
    """A named set of parameters whose figures add up: positions in the sequence of ``ParameterInfo``."""

    name: str
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Units:
    """Every unit of a model.

    Attributes:
        parameters: one unit each.
        layers: by owning module, in the order of first appearance.
        groups: per depth, layers folded into their ancestors; the last is ``layers``.
        total: everything.
    """

    parameters: tuple[Unit, ...]
    layers: tuple[Unit, ...]
    groups: tuple[tuple[Unit, ...], ...]
    total: Unit

    def distinct(self) -> tuple[Unit, ...]:
        """All units, each once: a layer alone in its group is that group."""
        return tuple(dict.fromkeys(chain(self.parameters, self.layers, *self.groups, (self.total,))))


def units(parameters: Sequence[ParameterInfo]) -> Units:
    """The units of a model with these parameters."""
    blocks = [_blocks(info.layer) for info in parameters]
    layers = _collect(parameters, lambda i: parameters[i].layer)
    depth = max((len(names) for names in blocks), default=1)
    folded = [_collect(parameters, lambda i, d=d: ".".join(blocks[i][: d + 1])) for d in range(depth - 1)]  # type: ignore[misc]
    return Units(
        parameters=tuple(Unit(info.name, (i,)) for i, info in enumerate(parameters)),
        layers=layers,
        groups=(*folded, layers),
        total=Unit("total", tuple(range(len(parameters)))),
    )


def _blocks(layer: str) -> list[str]:
    """A layer's name cut into levels; a container's index stays with the container: ``blocks.0 | attn | qkv``."""
    levels: list[str] = []
    for part in layer.split("."):
        if part.isdigit() and levels:
            levels[-1] = f"{levels[-1]}.{part}"
        else:
            levels.append(part)
    return levels


def _collect(parameters: Sequence[ParameterInfo], name_of: Callable[[int], str]) -> tuple[Unit, ...]:
    members: dict[str, list[int]] = {}
    for i in range(len(parameters)):
        members.setdefault(name_of(i), []).append(i)
    return tuple(Unit(name, tuple(indices)) for name, indices in members.items())


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """Which parameter counts in which unit: sums over members are one operator.

    Attributes:
        members: positions of parameters, unit after unit.
        starts: where each unit's begin.
        units: how many there are.
    """

    members: NDArray[np.int_]
    starts: NDArray[np.int_]
    units: int

    @classmethod
    def of(cls, units: Sequence[Unit]) -> Folding:
        """The folding of parameters into these units, each of which has some."""
        members = np.array([p for unit in units for p in unit.members], dtype=int)
        starts = np.array([*accumulate((len(unit.members) for unit in units), initial=0)][:-1], dtype=int)
        return cls(members, starts, len(units))

    @np.errstate(all="ignore")
    def rows(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[P, ...]`` summed to ``[U, ...]``."""
        found: NDArray[np.float64] = np.add.reduceat(values[self.members], self.starts, axis=0)
        return found

    @np.errstate(all="ignore")
    def columns(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[..., P]`` summed to ``[..., U]``."""
        found: NDArray[np.float64] = np.add.reduceat(values.take(self.members, -1), self.starts, axis=-1)
        return found

    def any(self, flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``[..., P]`` flags: whether any member's is set, ``[..., U]``."""
        if not flags.any():
            return np.zeros((*flags.shape[:-1], self.units), dtype=bool)
        found: NDArray[np.bool_] = np.logical_or.reduceat(flags.take(self.members, -1), self.starts, axis=-1)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The units of a model, and where they stand: the same for every report.

    Attributes:
        units: of the model.
        order: all of them, each once; it fixes which column, or list entry, belongs to which unit.
        total: where the whole model stands.
        folding: parameters to units.
        names: of the parameters.
        numel: of the parameters, ``[P]``.
        shown: where parameters, layers and groups stand.
    """

    units: Units
    order: tuple[Unit, ...]
    total: int
    folding: Folding
    names: tuple[str, ...]
    numel: NDArray[np.int_]
    shown: tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]


def layout(parameters: Sequence[ParameterInfo]) -> Layout:
    """The layout of a model with these parameters."""
    return _layout(tuple(parameters))


@lru_cache(maxsize=16)
def _layout(parameters: tuple[ParameterInfo, ...]) -> Layout:
    model = units(parameters)
    order = model.distinct()
    at = {unit: u for u, unit in enumerate(order)}
    shown = (
        tuple(at[unit] for unit in model.parameters),
        tuple(at[unit] for unit in model.layers),
        tuple(tuple(at[unit] for unit in level) for level in model.groups),
    )
    names = tuple(info.name for info in parameters)
    numel = np.array([info.numel for info in parameters], dtype=int)
    return Layout(model, order, at[model.total], Folding.of(order), names, numel, shown)
