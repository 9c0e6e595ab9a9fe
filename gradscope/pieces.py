"""One micro-step's numbers on the host, and what they say of all of its parameters at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.coverage import Coverage
from gradscope.evidence import read
from gradscope.judgement import Judged, judge
from gradscope.moments.arrival import Arrival
from gradscope.moments.microstep import MicroStep, coarsest


class Right(NamedTuple):
    """Parameters of one window whose contributions add up beyond doubt, in every micro-step and by the same rule.

    Attributes:
        indices: which.
        ways: how each is covered, its error aside.
        errors: the largest relative difference in the micro-steps.
        squares: the mean of their squares.
        bounds: what the latter is bounded by.
        own_sq: ``Σ‖hᵢ‖²``.
    """

    indices: Sequence[int] = ()
    ways: Sequence[Coverage] = ()
    errors: Sequence[float] = ()
    squares: Sequence[float] = ()
    bounds: Sequence[float] = ()
    own_sq: Sequence[float] = ()

    def of_only(self, kept: Sequence[bool]) -> Right:
        """Some of them."""
        if all(kept):
            return self
        numbers = (list(compress(column, kept)) for column in (self.errors, self.squares, self.bounds, self.own_sq))
        return Right(list(compress(self.indices, kept)), list(compress(self.ways, kept)), *numbers)

    def and_in(self, other: Right) -> Right:
        """What holds in one more micro-step too; means are sums so far."""
        return Right(
            self.indices,
            self.ways,
            [max(pair) for pair in zip(self.errors, other.errors, strict=True)],
            [a + b for a, b in zip(self.squares, other.squares, strict=True)],
            self.bounds,
            [a + b for a, b in zip(self.own_sq, other.own_sq, strict=True)],
        )


class Piece:
    """One micro-step's numbers.

    Attributes:
        step: the micro-step.
        newest: whether its samples' norms will be asked for.
        indices: the parameters that something reached.
        records: theirs.
        rows: the numbers of each.
        right: what they say of all of them, and of which of them it holds; None where each needs a closer look.
    """

    __slots__ = ("_whole", "indices", "newest", "records", "right", "rows", "step")

    def __init__(self, step: MicroStep, newest: bool) -> None:
        measured = step.measured
        self.step = step
        self.newest = newest
        self.indices = [i for i in sorted(measured) if measured[i].arrival is not None]
        self.records = list(map(measured.__getitem__, self.indices))
        self.rows: NDArray[np.float64] | Sequence[Sequence[float]] = ()
        self.right: tuple[Right, Sequence[bool]] | None = None
        self._whole: tuple[float, torch.dtype] | None = None

    def judge(self, index: int) -> Judged | None:
        """The verdict on one parameter; None where nothing reached it."""
        if index not in self.indices:
            return None
        if self._whole is None:
            self._whole = sum(self.sizes()), coarsest(*{record.dtype for record in self.records})
        self.step.settle()
        own = self.indices.index(index)
        row = [float(number) for number in self.rows[own]]
        return judge(self.records[own], read(row, self.step.samples), self.step, *self._whole)

    def sizes(self) -> list[float]:
        """``‖fresh‖²`` of each parameter."""
        return [float(row[1]) for row in self.rows]

    def holds(self, grad_sq: Mapping[int, Tensor | Arrival]) -> bool:
        """Whether these are numbers in ``rows`` already: nothing else has been added to the gradient."""
        pairs = zip(map(grad_sq.get, self.indices), self.records, strict=True)
        same = (one.arrival is not None and one.arrival.is_measured_by(found) for found, one in pairs)
        return len(grad_sq) == len(self.indices) and all(same)


def common(pieces: Sequence[Piece]) -> Right:
    """What all micro-steps agree on."""
    if not pieces or pieces[0].right is None:
        return Right()
    (found, kept), count = pieces[0].right, len(pieces)
    for piece in pieces[1:]:
        if piece.right is None or piece.indices != pieces[0].indices:
            return Right()
        other, more = piece.right
        same = (one is another for one, another in zip(found.ways, other.ways, strict=True))
        kept = [all(each) for each in zip(kept, more, same, strict=True)]
        found = found.and_in(other)
    return (found if count == 1 else found._replace(squares=[square / count for square in found.squares])).of_only(kept)
