"""What autograd added to parameters during one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from gradscope.contributions import Probe
from gradscope.contributions.precision import squared_norm
from gradscope.kernels import available, readings, serves, serves_lines
from gradscope.wide import widen

#: Vectors up to this many elements are put into one table: for them calls cost more than what they compute.
VECTOR = 1 << 12

#: Elements up to which a product of a float32 gradient with itself keeps its digits; at eight times as many it is off by 3e-6.
SHORT = 1 << 16

#: Elements of larger gradients that are read at a time.
PART = 1 << 19

#: From so many vectors of one length on it pays to make a table of them.
MANY = 4


#: In the place of a table, where numbers were found alone.
_ALONE = torch.empty(2, 0, dtype=torch.float64, device="cpu")


class Arrival:
    """What autograd added to one parameter during one backward, as numbers; the gradient itself is rarely held.

    Holding it while the backward runs would make autograd copy it into ``.grad`` instead of handing it over.

    Attributes:
        times: how often the leaf was reached.
        dtype: of the gradient.
        fresh: a copy of the gradient, where it is needed in full.
        copy: what ``.grad`` held when the backward was over, where that was copied on the way; ``fresh`` may be less than that.
        stored: version of ``.grad``, where the numbers are those of all that it held when the backward was over; else None.
    """

    # On the class: there is one such object for each parameter of each micro-step, and most of these stay as they are.
    times = 1
    fresh: Tensor | None = None
    copy: Tensor | None = None
    stored: int | None = None

    _squared_norm: Tensor | None = None
    _probe: Tensor | None = None

    def __init__(self, dtype: torch.dtype, table: Tensor, place: int) -> None:
        """One of many whose numbers were found together.

        Args:
            dtype: of the gradient.
            table: ``‖fresh‖²`` and ``⟨fresh, R⟩`` along k directions, float64 ``[1 + k, m]``, on the gradients' device.
            place: which of them it is.
        """
        self.dtype = dtype
        self.table = table
        self.place = place

    @property
    def on_cuda(self) -> bool:
        """Whether it lies on a GPU."""
        return (self.table if self._squared_norm is None else self._squared_norm).is_cuda

    @property
    def squared_norm(self) -> Tensor:
        """``‖fresh‖²``, float64 scalar tensor; summed where a leaf is reached more than once."""
        if self._squared_norm is None:
            self._squared_norm = self.table[0, self.place]
        return self._squared_norm

    @property
    def probe(self) -> Tensor:
        """``⟨fresh, R⟩``, ``[k]``."""
        if self._probe is None:
            self._probe = self.table[1:, self.place]
        return self._probe

    def is_measured_by(self, value: Tensor | Arrival | None) -> bool:
        """Whether that is its own ``‖fresh‖²``, not another number that is as large."""
        return value is self or (value is not None and value is self._squared_norm)

    @classmethod
    def of(cls, grad: Tensor, probe: Probe, *, keep: bool = False) -> Arrival:
        """The numbers of a gradient, and a copy of it on request."""
        # With create_graph it has a graph of its own.
        grad = grad.detach()
        fresh = (grad.to_dense() if grad.is_sparse else grad.clone()) if keep else None
        arrival = cls.known(squared_norm(grad), probe.of(grad), grad.dtype)
        arrival.fresh = fresh
        return arrival

    @classmethod
    def known(cls, square: Tensor, along: Tensor, dtype: torch.dtype) -> Arrival:
        """One whose numbers were found alone."""
        arrival = cls.__new__(cls)
        arrival.dtype = dtype
        arrival._change(square, along)
        return arrival

    def _change(self, square: Tensor, along: Tensor) -> None:
        self._squared_norm, self._probe, self.table, self.stored = square, along, _ALONE, None

    def gather(self) -> None:
        """The numbers are on the host from here on."""
        stored = self.stored
        self._change(self.squared_norm.cpu(), self.probe.cpu())
        self.stored = stored

    def add(self, grad: Tensor, probe: Probe) -> None:
        """A further arrival in the same backward (a weight used inside and outside a reentrant checkpoint)."""
        grad = grad.detach()
        self._change(self.squared_norm + squared_norm(grad), self.probe + probe.of(grad))
        self.times += 1
        if self.fresh is not None:
            self.fresh = self.fresh + grad

    def merge(self, later: Arrival) -> None:
        """What a later backward of the same micro-step added; both must have kept their gradients."""
        square, self.times = self.squared_norm + later.squared_norm, max(self.times, later.times)
        if self.fresh is not None and later.fresh is not None:
            self.fresh = self.fresh + later.fresh
            square = squared_norm(self.fresh)
        self._change(square, self.probe + later.probe)


def size_of(value: Tensor | Arrival) -> Tensor:
    """``‖fresh‖²`` of an arrival; anything else is such a number already."""
    return value.squared_norm if isinstance(value, Arrival) else value


def found_together(arrivals: Sequence[Arrival]) -> Tensor | None:
    """``‖fresh‖²`` and ``⟨fresh, R⟩`` of all of them, float64 ``[2, m]``.

    None where some were found alone, or looked at along several directions, or lie on several devices.
    """
    tables = {id(arrival.table): arrival.table for arrival in arrivals}
    alike = {(table.shape[0], table.device) for table in tables.values()}
    if id(_ALONE) in tables or len(alike) > 1 or next(iter(tables.values())).shape[0] != 2:
        return None
    starts = accumulate((table.shape[1] for table in tables.values()), initial=0)
    start = dict(zip(tables, starts, strict=False))
    places = [start[id(arrival.table)] + arrival.place for arrival in arrivals]
    whole = torch.cat(list(tables.values()), dim=1)
    return whole if places == list(range(whole.shape[1])) else whole[:, places]


def arrivals_of(
    grads: Sequence[Tensor], probes: Sequence[Probe], memory: Callable[[torch.Size, Tensor], Tensor] | None = None
) -> list[Arrival]:
    """The numbers of many gradients, in as few operators as there can be.

    Args:
        grads: dense or sparse.
        probes: random directions for each.
        memory: lends memory for copies, where these are wanted; they are made only if that costs no second look.
    """
    copies = None
    if memory is not None and serves_lines(*grads):
        copies = [memory(grad.shape, grad) for grad in grads]
    table, dtype = _at_once(grads, probes, copies), grads[0].dtype
    if table is not None:
        arrivals = [Arrival(dtype, table, place) for place in range(len(grads))]
        for arrival, copy in zip(arrivals, copies or (), strict=copies is not None):
            arrival.copy = copy
        return arrivals
    found: dict[int, Arrival] = {}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, (grad, probe) in enumerate(zip(grads, probes, strict=True)):
        read = _way(grad) if len(probe.lefts) == 1 else None
        if read is None:
            found[i] = Arrival.of(grad, probe)
        else:
            groups.setdefault((read, grad.dtype, grad.device, read is _alike and grad.shape[0]), []).append(i)
    for key in [key for key, indices in groups.items() if key[0] is _alike and len(indices) < MANY]:
        groups.setdefault((_short, *key[1:3], False), []).extend(groups.pop(key))
    for (read, *_), indices in groups.items():
        own, directions = [grads[i].detach() for i in indices], [probes[i] for i in indices]
        together = read(own, directions)
        for place, i in enumerate(indices):
            found[i] = Arrival(grads[i].dtype, together, place)
    return [found[i] for i in range(len(grads))]


def projections(tensors: Sequence[Tensor], probes: Sequence[Probe]) -> Sequence[Tensor]:
    """``⟨tensor, R⟩`` of each, ``[k]``."""
    table = _at_once(tensors, probes)
    if table is not None:
        return table[1:].unbind(1)
    return [probe.of(tensor) for tensor, probe in zip(tensors, probes, strict=True)]


def _way(grad: Tensor) -> Callable[[Sequence[Tensor], Sequence[Probe]], Tensor] | None:
    """How a gradient is read together with others along a single direction, ``[2, m]``; None where it is read alone."""
    if grad.layout is not torch.strided or grad.dtype not in (torch.float32, torch.float64) or not grad.is_contiguous():
        return None
    size = grad.numel()
    if not size:
        return None
    if serves(grad):
        return _served
    if grad.dim() == 1 and size <= VECTOR:
        return _alike
    if grad.dim() and size <= SHORT:
        return _short
    return _matrices if grad.dim() > 1 and size // grad.shape[0] <= PART else None


def _served(grads: Sequence[Tensor], probes: Sequence[Probe]) -> Tensor:
    """Those of which it is known that the kernel can read them."""
    table = _at_once(grads, probes)
    if table is None:
        raise RuntimeError("the kernel does not read what it serves")
    return table


def _at_once(grads: Sequence[Tensor], probes: Sequence[Probe], copies: Sequence[Tensor] | None = None) -> Tensor | None:
    """Squared norms and projections of gradients of any shape, each read once for a direction; float64 ``[1 + k, m]``.

    None where the kernel cannot read them.
    """
    if not (available() and grads) or len({len(probe.lefts) for probe in probes}) > 1:
        return None
    found: list[Tensor] = []
    for k in range(len(probes[0].lefts)):
        lefts, rights = [probe.lefts[k] for probe in probes], [probe.rights[k] for probe in probes]
        table = readings(grads, lefts, rights, None if k else copies)
        if table is None:
            return None
        found.append(table[1:] if k else table)
    return found[0] if len(found) == 1 else torch.cat(found)


def _alike(grads: Sequence[Tensor], probes: Sequence[Probe]) -> Tensor:
    """Squared norms and projections of vectors of one length."""
    table = torch.stack(list(grads))
    lengths: Tensor = torch.linalg.vector_norm(table, dim=1)
    along = table.mul_(torch.stack([probe.lefts[0] for probe in probes])).sum(1)
    return torch.stack([widen(lengths).square_(), widen(along)])


def _short(grads: Sequence[Tensor], probes: Sequence[Probe]) -> Tensor:
    """The same of gradients that are short enough for one product to keep its digits."""
    squares, along = [], []
    for grad, probe in zip(grads, probes, strict=True):
        flat, left, right = grad.view(-1), probe.lefts[0], probe.rights[0]
        squares.append(flat.dot(flat))
        along.append(flat.dot(left) if right.shape[0] == 1 else left.dot(grad.view(left.shape[0], -1).mv(right)))
    return widen(torch.stack([torch.stack(squares), torch.stack(along)]))


def _matrices(grads: Sequence[Tensor], probes: Sequence[Probe]) -> Tensor:
    """The same of larger ones, a few rows at a time: the second look finds in cache what the first one has read."""
    squares, along = [], []
    for grad, probe in zip(grads, probes, strict=True):
        left, right = probe.lefts[0], probe.rights[0]
        rows = grad.view(left.shape[0], -1).split(max(1, PART // right.shape[0]))
        found = [(squared_norm(part), part.mv(right)) for part in rows]
        sizes, parts = zip(*found, strict=True)
        squares.append(sizes[0] if len(sizes) == 1 else torch.stack(sizes).sum())
        along.append(left.dot(parts[0] if len(parts) == 1 else torch.cat(parts)))
    return torch.stack([torch.stack(squares), widen(torch.stack(along))])
