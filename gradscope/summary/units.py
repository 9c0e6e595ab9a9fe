"""What a report speaks of: single parameters, layers, groups of layers, the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

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
    """Which parameter counts in which unit, as pairs of indices: sums over members are one ``index_add``."""

    parameter: Tensor
    unit: Tensor
    units: int

    @classmethod
    def of(cls, units: Sequence[Unit]) -> Folding:
        """The folding of parameters into these units."""
        pairs = [(p, u) for u, unit in enumerate(units) for p in unit.members]
        both = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        return cls(both[:, 0], both[:, 1], len(units))

    def rows(self, values: Tensor) -> Tensor:
        """``[P, ...]`` summed to ``[U, ...]``."""
        folded = values.new_zeros((self.units, *values.shape[1:]))
        return folded.index_add_(0, self.unit, values[self.parameter])

    def columns(self, values: Tensor) -> Tensor:
        """``[T, P]`` summed to ``[T, U]``."""
        return self.rows(values.T).T

    def any(self, flags: Tensor) -> Tensor:
        """``[..., P]`` flags: whether any member's is set, ``[..., U]``."""
        counts = flags.to(torch.float64)
        return (self.columns(counts) if counts.dim() == 2 else self.rows(counts)) > 0
