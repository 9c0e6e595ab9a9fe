"""The windows' sums as arrays: one row per window, one column per unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscope.columns import CoverageColumns, SumColumns
from gradscope.coverage import Coverage
from gradscope.statistics.signal import signal
from gradscope.statistics.trace_cov import trace_cov
from gradscope.summary.units import Folding
from gradscope.window import Window

_Floats = NDArray[np.float64]
_Flags = NDArray[np.bool_]

UNKNOWN = Coverage("not measured")


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """What the windows hold of each parameter, ``[T, P]`` each, float64.

    Attributes:
        known: whether the window knows the parameter's sums: it was measured, or nothing reached it and they are zero.
        present: ``[P]``: parameters that the report has figures for: known in the newest window, measured in one.
        mismatch: ``[P]``: the check failed in at least one window.
        estimated: ``[P]``: random signs were used in at least one window.
        squares: ``‖ḡ‖²`` and ``Σ‖hᵢ‖²``, ``[2, T, P]``, zero where not measured.
        preconditioned: ``tr(PΣ)`` and ``GᵀPG``, NaN where there is none.
    """

    known: _Flags
    present: _Flags
    mismatch: _Flags
    estimated: _Flags
    squares: _Floats
    preconditioned: tuple[_Floats, _Floats]


class _Table(NamedTuple):
    """One window's: flags, ``‖ḡ‖²`` and ``Σ‖hᵢ‖²`` of each parameter, and pairs by name; and what the flags are made from."""

    flags: _Flags
    grad_sq: Sequence[float]
    own_sq: Sequence[float]
    preconditioned: Mapping[str, tuple[float, float] | None]
    made_from: tuple[Sequence[Coverage], Sequence[bool]] = ((), ())


def sums(names: tuple[str, ...], windows: Sequence[Window]) -> Sums:
    """The windows' sums, gathered. A parameter that nothing reached has the sums zero, which is what it contributes."""
    tables: list[_Table] = []
    for window in windows:
        tables.append(_table(window, names, tables[-1] if tables else None))
    shape = (len(windows), len(names))
    measured, silent, mismatch, estimated = np.array([table.flags for table in tables]).transpose(1, 0, 2)
    columns = ([table.grad_sq for table in tables], [table.own_sq for table in tables])
    squares = np.where(measured, np.array(columns, dtype=float).reshape(2, *shape), 0.0)
    pairs = np.full((2, *shape), np.nan)
    for t, table in enumerate(tables):
        for p, name in enumerate(names) if table.preconditioned else ():
            pair = table.preconditioned.get(name)
            if pair is not None and measured[t, p]:
                pairs[:, t, p] = pair
    known = measured | silent
    present = known[-1] & np.logical_or.reduce(measured, 0)
    mismatch, estimated = np.logical_or.reduce(mismatch, 0), np.logical_or.reduce(estimated, 0)
    return Sums(known, present, mismatch, estimated, squares, (pairs[0], pairs[1]))


def _table(window: Window, names: tuple[str, ...], before: _Table | None) -> _Table:
    """One window's, given the table of the one before it."""
    coverage, found = window.coverage, window.parameters
    if isinstance(coverage, CoverageColumns) and isinstance(found, SumColumns) and found.names == names:
        ways, shown = coverage.ways, found.shown
        if before is not None and before.made_from[0] is ways and before.made_from[1] == shown:
            flags = before.flags
        else:
            flags = _flags(zip(ways, shown, strict=True))
        return _Table(flags, found.grad_sq, found.own_sq, found.preconditioned, (ways, shown))
    rows = [found.get(name) for name in names]
    return _Table(
        _flags((coverage.get(name, UNKNOWN), row is not None) for name, row in zip(names, rows, strict=True)),
        [np.nan if row is None else row.grad_sq_norm for row in rows],
        [np.nan if row is None else row.contribution_sq_sum for row in rows],
        {name: row.preconditioned for name, row in found.items() if row.preconditioned is not None},
    )


def _flags(rows: Iterable[tuple[Coverage, bool]]) -> _Flags:
    """Measured, silent, mismatch, estimated, ``[4, P]``, from how each parameter is covered and whether it has sums."""
    found = []
    for coverage, shown in rows:
        status = coverage.status
        if not shown or status == "mismatch":
            found.append((False, status == "no gradient", status == "mismatch", False))
        else:
            found.append((True, False, False, status == "estimated"))
    flags: _Flags = np.array(found, dtype=bool).reshape(-1, 4).T
    return flags


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """Figures per window and unit, ``[T, U]`` each.

    Attributes:
        grad_sq_norm: ``‖ḡ‖²``.
        contribution_sq_sum: ``Σ‖hᵢ‖²``.
        grad_sq: ``|G|²``; NaN in windows of one sample.
        trace_cov: ``tr Σ``; NaN in windows of one sample.
        same: whether the window knows the same parameters of the unit as the newest one: only then are the two
            comparable.
        used: whether the window enters the means: ``same``, and its figures are finite.
    """

    grad_sq_norm: _Floats
    contribution_sq_sum: _Floats
    grad_sq: _Floats
    trace_cov: _Floats
    same: _Flags
    used: _Flags


def series(gathered: Sums, windows: Sequence[Window], folding: Folding) -> Series:
    """The units' figures in every window."""
    samples = np.array([window.samples for window in windows], dtype=float)[:, None]
    weight_sq_sum = np.array([window.weight_sq_sum for window in windows])[:, None]
    kept = gathered.present & gathered.known
    squares = gathered.squares if kept.all() else np.where(kept, gathered.squares, 0.0)
    grad_sq_norm, contribution_sq_sum = folding.columns(squares)
    grad_sq = signal(grad_sq_norm, contribution_sq_sum, weight_sq_sum)
    noise = trace_cov(grad_sq_norm, grad_sq, samples)
    same = ~folding.any(gathered.known != gathered.known[-1])
    used = same & np.isfinite(noise) & np.isfinite(grad_sq)
    return Series(grad_sq_norm, contribution_sq_sum, grad_sq, noise, same, used)


@np.errstate(all="ignore")
def mean(values: _Floats, used: _Flags) -> _Floats:
    """Mean of each column over the windows in use; NaN where there is none."""
    found: _Floats = np.where(used, values, 0.0).sum(0) / used.sum(0)
    return found
