"""What is compared to judge a window, brought to the host: a row of numbers for each parameter in each micro-step."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscope.contributions import tables
from gradscope.moments.arrival import Arrival, found_together
from gradscope.moments.microstep import Measured, MicroStep
from gradscope.wide import wide_dtype, widen

_NAN = float("nan")
_SKETCH = attrgetter("sketch")
_Floats = NDArray[np.float64]


class Numbers(NamedTuple):
    """One micro-step's figures of one parameter, brought to the host.

    Attributes:
        difference: root mean square over probes of ``⟨Σhᵢ - fresh, R⟩``; estimates ``‖Σhᵢ - fresh‖``.
        fresh_sq: ``‖fresh‖²``.
        own_sq: ``Σ‖hᵢ‖²``.
        typical: ``Σ‖hᵢ‖/√n``, the size that a sum of independent contributions has.
        signed_difference: the same as ``difference`` for ``Σ rᵢhᵢ``.
        signed_typical: ``√(Σ rᵢ²‖hᵢ‖²)``.
        signed_sq: ``‖Σ rᵢhᵢ‖²``.
        squared: ``‖hᵢ‖²`` of the one sample that was built in full, as its contribution gave it.
        built: the same from the built gradient.
    """

    difference: float
    fresh_sq: float
    own_sq: float
    typical: float
    signed_difference: float = _NAN
    signed_typical: float = _NAN
    signed_sq: float = _NAN
    squared: float = _NAN
    built: float = _NAN


FIELDS = len(Numbers._fields)

#: Fields of an ordinary window: difference, ``‖fresh‖²``, ``Σ‖hᵢ‖²``, ``Σ‖hᵢ‖``.
PLAIN = 4


def device_numbers(records: Sequence[Measured], step: MicroStep) -> Tensor:
    """The first fields of ``Numbers``, a row for each record, float64 and still on the device; NaN where there is nothing.

    Computed for all parameters of a micro-step at once: one parameter's numbers are so few that each operator on them would
    cost more than it does.

    Args:
        records: those that autograd gave something.
        step: the micro-step.
    """
    arrivals = [record.arrival for record in records if record.arrival is not None]
    kinds = [_kind(record) for record in records]
    table = arrivals[0].squared_norm.new_full((len(records), FIELDS), float("nan"))
    table[:, 1] = torch.stack([arrival.squared_norm for arrival in arrivals])
    for k, record in enumerate(records):
        if record.signed_sum is not None:
            table[k, 6] = record.signed_sum
        if record.built is not None and record.norms is not None and step.spot is not None:
            table[k, 7], table[k, 8] = record.norms[step.spot], record.built
    for kind in dict.fromkeys(kinds):
        if kind is not None:
            rows = [k for k, other in enumerate(kinds) if other == kind]
            _compare([records[k] for k in rows], step, table, torch.tensor(rows, device=table.device))
    return table


def is_plain(step: MicroStep, records: Sequence[Measured]) -> bool:
    """Whether it is an ordinary micro-step, all of whose parameters have contributions, seen along one direction."""
    if step.spot is not None or step.signs is not None:
        return False
    samples = step.samples
    for record in records:
        probes = record.probes
        if record.norms is None or probes is None or probes.numel() != samples or probes.is_complex():
            return False
    return True


def alike(step: MicroStep) -> tuple[int, int | None]:
    """What ordinary micro-steps that are compared together have in common: samples, and how many of them are squared."""
    return step.samples, None if step.chosen is None else step.chosen.numel()


def _sums(table: Tensor, chosen: Sequence[Tensor | None]) -> Tensor:
    """Sums over samples, ``[R, n]`` to ``[R]``, or what is expected of them from those that were chosen for each row."""
    indices = [one for one in chosen if one is not None]
    if not indices:
        return table.sum(1)
    some = table.gather(1, torch.stack(indices).to(table.device))
    return some.sum(1) * (table.shape[1] / some.shape[1])


def compare_all(records: Sequence[Measured], chosen: Sequence[Tensor | None]) -> Tensor:
    """Of ordinary micro-steps that are ``alike``: ``PLAIN`` fields, in as few operators as there can be.

    Args:
        records: of all of them.
        chosen: for each the samples whose squares were computed; None for all.
    """
    arrivals = [record.arrival for record in records if record.arrival is not None]
    norms = torch.stack([record.norms for record in records if record.norms is not None])
    probes = torch.stack([record.probes for record in records if record.probes is not None])
    fresh_sq, along = _sizes_and_probes(arrivals)
    off = probes.sum(1, dtype=wide_dtype(probes)) - along
    return torch.stack([off[:, 0], fresh_sq, _sums(norms, chosen), _sums(norms.sqrt(), chosen)], dim=1)


def _sizes_and_probes(arrivals: Sequence[Arrival]) -> tuple[Tensor, Tensor]:
    """``‖fresh‖²``, ``[R]``, and ``⟨fresh, R⟩`` along one direction, ``[R, 1]``."""
    found = found_together(arrivals)
    if found is not None:
        return found[0], found[1].unsqueeze(1)
    return torch.stack([one.squared_norm for one in arrivals]), torch.stack([one.probe for one in arrivals])


def sketched_order(step: MicroStep, records: Sequence[Measured]) -> tuple[int, ...] | None:
    """Where each record stands among the weights and biases of the micro-step's sketches, two places for each.

    None where it is no ordinary micro-step all of whose parameters have sketches, of one precision.

    Args:
        step: the micro-step.
        records: its parameters'.
    """
    if step.spot is not None or step.signs is not None or not step.sketches:
        return None
    dtype, places = step.sketches[0][0].memory.dtype, dict[int, int]()
    for number, (sketch, own) in enumerate(step.sketches):
        if sketch.memory.dtype is not dtype:
            return None
        for which, record in enumerate(own):
            places[id(record)] = 2 * number + which
    order = tuple(map(places.get, map(id, records)))
    known = tuple(place for place in order if place is not None)
    return known if len(known) == len(order) and None not in map(_SKETCH, records) else None


def compare_sketches(steps: Sequence[MicroStep], records: Sequence[Measured], newest: Sequence[MicroStep]) -> Tensor:
    """What ``read_sketches`` reads, float64 and still on the device; the newest window's micro-steps are settled on the way.

    Args:
        steps: those that are ``alike`` and have equally many sketches.
        records: of all of them, equally many each.
        newest: those whose single samples will be asked for.
    """
    inputs, right, rows, left = tables([sketch for step in steps for sketch, _ in step.sketches]).unbind(1)
    lengths = widen(torch.stack([inputs * rows, rows], dim=1))
    probes = torch.stack([right * left, left], dim=1)
    norms, start = lengths.square(), 0
    chosen = [step.chosen for step in steps for _ in range(2 * len(step.sketches))]
    for step in steps:
        own, start = slice(start, start + len(step.sketches)), start + len(step.sketches)
        if step in newest:
            columns = zip(norms[own].clone().unbind(), probes[own].unsqueeze(3).clone().unbind(), strict=True)
            step.settled([(squares[0], along[0], squares[1], along[1]) for squares, along in columns])
    fresh_sq, along = _sizes_and_probes([record.arrival for record in records if record.arrival is not None])
    return torch.cat([
        probes.sum(2, dtype=wide_dtype(probes)).view(-1), _sums(norms.flatten(0, 1), chosen),
        _sums(lengths.flatten(0, 1), chosen), along.view(-1), fresh_sq,
    ])  # fmt: skip


@np.errstate(all="ignore")
def read_sketches(found: _Floats, order: Sequence[int], steps: int) -> _Floats:
    """``PLAIN`` numbers for each record, ``[S, P, 4]``.

    Args:
        found: as ``compare_sketches`` gives it, of steps that have their records in one order.
        order: where each record stands among weights and biases, two for each sketch.
        steps: S.
    """
    records = steps * len(order)
    of_places, of_records = found[: -2 * records].reshape(3, steps, -1), found[-2 * records :].reshape(2, steps, -1)
    probes, squares, lengths = of_places[:, :, list(order)]
    return np.stack([probes - of_records[0], of_records[1], squares, lengths], axis=-1)


def read(row: Sequence[float], samples: int) -> Numbers:
    """One row of ``device_numbers`` or ``PLAIN`` numbers, on the host."""
    if len(row) > PLAIN:
        return Numbers(*row)
    off, fresh_sq, own_sq, lengths = row
    return Numbers(abs(off), fresh_sq, own_sq, lengths / sqrt(samples))


def _kind(record: Measured) -> tuple[bool, int] | None:
    """What is compared together: complex or not, and along how many directions (parameters that failed look along all)."""
    if record.norms is None or record.probes is None:
        return None
    return record.probes.is_complex(), record.probes.shape[1]


def _compare(records: Sequence[Measured], step: MicroStep, table: Tensor, rows: Tensor) -> None:
    norms = torch.stack([record.norms for record in records if record.norms is not None])
    probes = torch.stack([record.probes for record in records if record.probes is not None])
    fresh = torch.stack([record.arrival.probe for record in records if record.arrival is not None])
    chosen = norms if step.chosen is None else norms[:, step.chosen.to(norms.device)]
    scale = step.samples / chosen.shape[1]
    table[rows, 0] = _root_mean_square(probes.sum(1) - fresh)
    table[rows, 2] = chosen.sum(1) * scale
    table[rows, 3] = chosen.sqrt().nanmean(1) * step.samples**0.5
    if step.signs is None or all(record.signed_probe is None for record in records):
        return
    signs = step.signs.to(probes.device, wide_dtype(probes).to_real())
    nothing = torch.full_like(fresh[0], float("nan"))
    signed = torch.stack([nothing if r.signed_probe is None else r.signed_probe for r in records])
    table[rows, 4] = _root_mean_square(torch.einsum("n,pnk->pk", signs.to(probes.dtype), probes) - signed)
    table[rows, 5] = (signs.square() * norms).nanmean(1).mul(step.samples).sqrt()


def _root_mean_square(difference: Tensor) -> Tensor:
    squares = difference.abs().square() if difference.is_complex() else difference.square()
    return widen(squares.mean(1).sqrt())
