"""What is thought of every parameter's figures, of many ended windows at once, since each operator counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.evidence import (
    PLAIN,
    alike,
    compare_all,
    compare_sketches,
    device_numbers,
    is_plain,
    read_sketches,
    sketched_order,
)
from gradscope.judgement import Judged, explained, way
from gradscope.moments.arrival import Arrival, size_of
from gradscope.moments.microstep import Measured, MicroStep, settle_all
from gradscope.pieces import Piece, Right, common
from gradscope.wide import widen

_Floats = NDArray[np.float64]
_KIND = attrgetter("dtype", "rule", "second_pass", "assumed")


class Ended(Protocol):
    """A window that has ended: its micro-steps, ``‖ḡ‖²`` by index or the arrival that it is of, and whether it is the newest."""

    @property
    def steps(self) -> list[MicroStep]: ...  # noqa: D102

    @property
    def grad_sq(self) -> dict[int, Tensor | Arrival]: ...  # noqa: D102

    @property
    def newest(self) -> bool: ...  # noqa: D102


class Verdicts:
    """One window's.

    Attributes:
        grad_sq: ``‖ḡ‖²`` by parameter index, on the host.
        right: parameters that need no closer look.
    """

    __slots__ = ("_judged", "_pieces", "grad_sq", "right")

    def __init__(self, pieces: Sequence[Piece], grad_sq: Mapping[int, float]) -> None:
        self._pieces = pieces
        self._judged: dict[int, list[Judged | None]] = {}
        self.grad_sq = grad_sq
        self.right = common(pieces)

    def of(self, index: int) -> Sequence[Judged | None]:
        """The verdicts on one parameter, one per micro-step and None where nothing reached it."""
        found = self._judged.get(index)
        if found is None:
            found = self._judged[index] = [piece.judge(index) for piece in self._pieces]
        return found

    @property
    def guarded(self) -> set[int]:
        """Parameters whose attribution was looked at."""
        pieces = [piece for piece in self._pieces if piece.step.spot is not None]
        return {i for piece in pieces for i, record in piece.step.measured.items() if record.built is not None}

    @property
    def signed(self) -> bool:
        """Whether any of the micro-steps had an inner backward, or a sample built in full."""
        return any(piece.step.spot is not None or piece.step.signs is not None for piece in self._pieces)


def verdicts(windows: Sequence[Ended]) -> list[Verdicts]:
    """The verdicts on each window."""
    pieces = [[Piece(step, window.newest) for step in window.steps] for window in windows]
    _fill([piece for own in pieces for piece in own if piece.indices])
    found: list[dict[int, float]] = []
    apart: list[tuple[dict[int, float], dict[int, Tensor | Arrival]]] = []
    for own, window in zip(pieces, windows, strict=True):
        if len(own) == 1 and own[0].holds(window.grad_sq):
            found.append(dict(zip(own[0].indices, own[0].sizes(), strict=True)))
        else:
            found.append({})
            apart.append((found[-1], window.grad_sq))
    values = [size_of(value) for _, grad_sq in apart for value in grad_sq.values()]
    tables = [torch.stack(values)] if len({value.device for value in values}) == 1 else values
    squares = iter([float(value) for table in _on_host([widen(one) for one in tables]) for value in table.flat])
    for known, grad_sq in apart:
        known.update(zip(grad_sq, squares, strict=False))
    return [Verdicts(own, grad_sq) for own, grad_sq in zip(pieces, found, strict=True)]


def _fill(pieces: Sequence[Piece]) -> None:
    """The numbers of each micro-step: ordinary ones of equally many samples together."""
    sketched: dict[tuple[Any, ...], list[Piece]] = {}
    others: list[Piece] = []
    for piece in pieces:
        piece.step.gather()
        step, order = piece.step, sketched_order(piece.step, piece.records)
        if order is None:
            others.append(piece)
        else:
            kind = step.sketches[0][0].alike, len(step.sketches)
            sketched.setdefault((order, alike(step), kind, _kinds(piece)), []).append(piece)
    settle_all([piece.step for piece in others])
    plain: dict[object, list[Piece]] = {}
    single: list[Piece] = []
    for piece in others:
        first = piece.records[0].norms
        if first is not None and is_plain(piece.step, piece.records):
            plain.setdefault((alike(piece.step), first.device, _kinds(piece)), []).append(piece)
        else:
            single.append(piece)
    tables = [_sketches(own) for own in sketched.values()]
    tables += [
        compare_all(_records(own), [piece.step.chosen for piece in own for _ in piece.records])
        for own in plain.values()
    ]
    tables += [device_numbers(piece.records, piece.step) for piece in single]
    found = iter(_on_host(tables))
    for (order, *_), own in sketched.items():
        _share_out(own, read_sketches(next(found), order, len(own)))
    for own in plain.values():
        _share_out(own, next(found).reshape(len(own), -1, PLAIN))
    for piece, rows in zip(single, found, strict=True):
        piece.rows = rows


def _kinds(piece: Piece) -> tuple[tuple[Any, ...], ...]:
    """Per parameter what its verdict depends on beside its numbers."""
    return tuple(map(_KIND, piece.records))


def _sketches(own: Sequence[Piece]) -> Tensor:
    newest = [piece.step for piece in own if piece.newest]
    return compare_sketches([piece.step for piece in own], _records(own), newest)


def _records(pieces: Sequence[Piece]) -> list[Measured]:
    return [record for piece in pieces for record in piece.records]


@np.errstate(all="ignore")
def _share_out(pieces: Sequence[Piece], rows: _Floats) -> None:
    """To each micro-step its rows ``[P, 4]``, and what they say; all of them have parameters of the same kinds."""
    kinds = _kinds(pieces[0])
    dtypes, ways = [kind[0] for kind in kinds], [way(*kind[1:]) for kind in kinds]
    errors, kept, bounds = explained(rows, pieces[0].step.samples, dtypes)
    numbers = (errors.tolist(), np.square(errors).tolist(), repeat(bounds.tolist()), rows[:, :, 2].tolist())
    for piece, own, flags, *columns in zip(pieces, rows, kept.tolist(), *numbers, strict=False):
        piece.rows = own
        piece.right = Right(piece.indices, ways, *columns), flags


def _on_host(tables: Sequence[Tensor]) -> list[_Floats]:
    """By one transfer for each device."""
    found: list[_Floats] = [np.empty(0)] * len(tables)
    places: dict[torch.device, list[int]] = {}
    for k, table in enumerate(tables):
        if table.is_cpu:
            found[k] = table.detach().numpy()
        else:
            places.setdefault(table.device, []).append(k)
    for own in places.values():
        flat = torch.cat([tables[k].reshape(-1) for k in own]).cpu().double()
        for k, part in zip(own, flat.split([tables[k].numel() for k in own]), strict=True):
            found[k] = part.reshape(tables[k].shape).numpy()
    return found
