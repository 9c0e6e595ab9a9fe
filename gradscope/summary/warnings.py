"""What a reader should know before trusting the figures, one line per kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from gradscope.statistics.drift import drift
from gradscope.statistics.heavy_tails import heavy_tails
from gradscope.statistics.signal import signal
from gradscope.statistics.trace_cov import trace_cov
from gradscope.summary.digest import Digest
from gradscope.summary.reasons import lacks_pairs, some, withheld
from gradscope.window import Window


def own_warnings(found: Digest) -> tuple[str, ...]:
    """Every warning that the windows themselves give rise to, the gravest first."""
    return tuple(
        chain(
            _mismatches(found), _broken(found), _drift(found), _tails(found), _left_out(found), _notices(found.windows)
        )
    )


def _mismatches(found: Digest) -> Iterator[str]:
    failed = _named(found, found.sums.mismatch)
    if failed:
        yield withheld(failed)


def _broken(found: Digest) -> Iterator[str]:
    """Windows, and samples of the newest, whose gradients are not finite."""
    total, newest = found.total, found.newest
    contributions = found.series.contribution_sq_sum[:, total]
    # Beside a finite ‖ḡ‖², NaN says that Σ‖hᵢ‖² is not known.
    sums = found.series.grad_sq_norm[:, total] + np.where(np.isnan(contributions), 0.0, contributions)
    if np.isfinite(sums).all():
        return
    broken = [window.index for window, sum_ in zip(found.windows, sums.tolist(), strict=True) if not abs(sum_) < np.inf]
    if not broken:
        return
    yield f"the gradient is not finite in {_windows(broken)}: left out of the means of what it touches"
    bad = (~np.isfinite(found.norms.rows[total])).nonzero()[0].tolist() if found.norms.known[total] else []
    # NaN also stands for a sample that was not chosen: where most are NaN, none can be blamed.
    if newest.index in broken and 0 < 2 * len(bad) <= newest.samples:
        names = [f"#{i}" + (f" ({newest.ids[i]})" if newest.ids else "") for i in bad]
        yield f"window {newest.index}: not finite in sample {some(names, 5)}"


def _drift(found: Digest) -> Iterator[str]:
    """Whether the totals moved while they were averaged."""
    used = found.series.used[:, found.total]
    series = (("|G|²", found.series.grad_sq), ("tr Σ", found.series.trace_cov))
    moved = [name for name, values in series if drift(values[used, found.total])]
    if moved:
        yield f"drift: {' and '.join(moved)} moved over these windows; the interval covers the average, not the present"


def _tails(found: Digest) -> Iterator[str]:
    """Whether the interval of the totals is narrower than its 95 % promises, seen on what was measured exactly."""
    exact = found.sums.present & ~found.sums.estimated
    grad_sq_norm, contributions = np.where(exact, found.sums.squares, 0.0).sum(2)
    weight_sq_sum = np.array([window.weight_sq_sum for window in found.windows])
    samples = np.array([window.samples for window in found.windows], dtype=float)
    noise = trace_cov(grad_sq_norm, signal(grad_sq_norm, contributions, weight_sq_sum), samples)
    used = found.series.used[:, found.total]
    if heavy_tails(noise[used], 1 / weight_sq_sum[used]):
        yield "heavy tails: a few samples carry much of the noise; interval optimistic"


def _left_out(found: Digest) -> Iterator[str]:
    """Parameters that the newest window does not hold, and windows that the totals do not average."""
    gone = _named(found, found.sums.known.any(0) & ~found.sums.known[-1] & ~found.sums.mismatch)
    if gone:
        yield f"{some(gone)}: measured before, but not in window {found.newest.index}, so left out"
    same = found.series.same[:, found.total].tolist()
    changed = [window.index for window, alike in zip(found.windows, same, strict=True) if not alike]
    if changed and not bool(found.sums.mismatch.any()):
        yield f"the measured parameters changed: the totals leave out {_windows(changed)}"
    single = [window.index for window in found.windows if lacks_pairs(window)]
    if single:
        yield f"one sample has all the weight in {_windows(single)}: counted, but in no mean and no interval"


def _notices(windows: Sequence[Window]) -> Iterator[str]:
    """What happened in the windows, each text once, with the windows it happened in."""
    where: dict[str, list[int]] = {}
    for window in windows:
        for text in window.notices:
            where.setdefault(text, []).append(window.index)
    for text, indices in where.items():
        yield f"{_windows(indices)}: {text}"


def _named(found: Digest, flags: NDArray[np.bool_]) -> list[str]:
    return [info.name for info, flag in zip(found.parameters, flags.tolist(), strict=True) if flag]


def _windows(indices: Sequence[int]) -> str:
    if len(indices) == 1:
        return f"window {indices[0]}"
    return (
        f"windows {', '.join(map(str, indices))}"
        if len(indices) <= 3
        else f"{len(indices)} windows, last {indices[-1]}"
    )
