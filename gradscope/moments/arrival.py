"""What autograd added to parameters during one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from gradscope.contributions import Probe
from gradscope.contributions.precision import squared_norm
from gradscope.kernels import readings, serves

#: Vectors up to this many elements are put into one table: for them calls cost more than what they compute.
VECTOR = 1 << 12

#: Elements up to which a product of a float32 gradient with itself keeps its digits; at eight times as many it is off by 3e-6.
SHORT = 1 << 16

#: Elements of larger gradients that are read at a time.
PART = 1 << 19

#: From so many vectors of one length on it pays to make a table of them.
MANY = 4


class Arrival:
    """What autograd added to one parameter during one backward, as numbers; the gradient itself is rarely held.

    Holding it while the backward runs would make autograd copy it into ``.grad`` instead of handing it over.

    Attributes:
        squared_norm: ``‖fresh‖²``, float64 scalar tensor; summed where a leaf is reached more than once.
        probe: ``⟨fresh, R⟩``, ``[k]``.
        times: how often the leaf was reached.
        dtype: of the gradient.
        fresh: a copy of the gradient, where it is needed in full.
        copy: what ``.grad`` held when the backward was over, where that was copied on the way; ``fresh`` may be less than that.
        version: that of ``.grad``, where the numbers are those of all that it held when the backward was over; else None.
    """

    # On the class: there is one such object for each parameter of each micro-step, and most of these stay as they are.
    times = 1
    fresh: Tensor | None = None
    copy: Tensor | None = None
    version: int | None = None

    def __init__(self, squared_norm: Tensor, probe: Tensor, dtype: torch.dtype) -> None:
        self.squared_norm = squared_norm
        self.probe = probe
        self.dtype = dtype

    @classmethod
    def of(cls, grad: Tensor, probe: Probe, *, keep: bool = False) -> Arrival:
        """The numbers of a gradient, and a copy of it on request."""
        # With create_graph it has a graph of its own.
        grad = grad.detach()
        fresh = (grad.to_dense() if grad.is_sparse else grad.clone()) if keep else None
        arrival = cls(squared_norm(grad), probe.of(grad), grad.dtype)
        arrival.fresh = fresh
        return arrival

    def add(self, grad: Tensor, probe: Probe) -> None:
        """A further arrival in the same backward (a weight used inside and outside a reentrant checkpoint)."""
        grad = grad.detach()
        self.squared_norm = self.squared_norm + squared_norm(grad)
        self.probe = self.probe + probe.of(grad)
        self.times += 1
        self.version = None
        if self.fresh is not None:
            self.fresh = self.fresh + grad

    def merge(self, later: Arrival) -> None:
        """What a later backward of the same micro-step added; both must have kept their gradients."""
        self.probe = self.probe + later.probe
        self.times = max(self.times, later.times)
        self.version = None
        if self.fresh is not None and later.fresh is not None:
            self.fresh = self.fresh + later.fresh
            self.squared_norm = squared_norm(self.fresh)
        else:
            self.squared_norm = self.squared_norm + later.squared_norm


def arrivals_of(
    grads: Sequence[Tensor], probes: Sequence[Probe], memory: Callable[[torch.Size, Tensor], Tensor] | None = None
) -> list[Arrival]:
    """The numbers of many gradients, in as few operators as there can be.

    Args:
        grads: dense or sparse.
        probes: random directions for each.
        memory: lends memory for copies, where these are wanted; they are made only if that costs no second look.
    """
    if serves(*grads) and _are_read_at_once(grads, probes):
        copies = None if memory is None else [memory(grad.shape, grad) for grad in grads]
        squares, along = _at_once(grads, probes, copies)
        arrivals = list(map(Arrival, squares.unbind(), along.unbind(), repeat(grads[0].dtype)))
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
        squares, along = read([grads[i].detach() for i in indices], [probes[i] for i in indices])
        for i, square, one in zip(indices, squares.unbind(), along.unbind(), strict=True):
            found[i] = Arrival(square, one, grads[i].dtype)
    return [found[i] for i in range(len(grads))]


def _are_read_at_once(grads: Sequence[Tensor], probes: Sequence[Probe]) -> bool:
    """Whether the compiled kernel, which serves them, can read them as they lie."""
    return all(len(probe.lefts) == 1 and grad.is_contiguous() for grad, probe in zip(grads, probes, strict=True))


def _way(grad: Tensor) -> Callable[[Sequence[Tensor], Sequence[Probe]], tuple[Tensor, Tensor]] | None:
    """How a gradient is read together with others; None where it is read alone."""
    if grad.layout is not torch.strided or grad.dtype not in (torch.float32, torch.float64) or not grad.is_contiguous():
        return None
    size = grad.numel()
    if not size:
        return None
    if serves(grad):
        return _at_once
    if grad.dim() == 1 and size <= VECTOR:
        return _alike
    if grad.dim() and size <= SHORT:
        return _short
    return _matrices if grad.dim() > 1 and size // grad.shape[0] <= PART else None


def _at_once(
    grads: Sequence[Tensor], probes: Sequence[Probe], copies: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Squared norms ``[m]`` and projections ``[m, 1]`` of gradients of any shape, each read once; float64."""
    return readings(grads, [probe.lefts[0] for probe in probes], [probe.rights[0] for probe in probes], copies)


def _alike(grads: Sequence[Tensor], probes: Sequence[Probe]) -> tuple[Tensor, Tensor]:
    """Squared norms, float64, and projections of vectors of one length."""
    table = torch.stack(list(grads))
    lengths: Tensor = torch.linalg.vector_norm(table, dim=1)
    along = table.mul_(torch.stack([probe.lefts[0] for probe in probes])).sum(1, keepdim=True)
    return lengths.double().square_(), along


def _short(grads: Sequence[Tensor], probes: Sequence[Probe]) -> tuple[Tensor, Tensor]:
    """The same of gradients that are short enough for one product to keep its digits."""
    squares, along = [], []
    for grad, probe in zip(grads, probes, strict=True):
        flat, left, right = grad.view(-1), probe.lefts[0], probe.rights[0]
        squares.append(flat.dot(flat))
        along.append(flat.dot(left) if right.shape[0] == 1 else left.dot(grad.view(left.shape[0], -1).mv(right)))
    return torch.stack(squares).double(), torch.stack(along).unsqueeze(1)


def _matrices(grads: Sequence[Tensor], probes: Sequence[Probe]) -> tuple[Tensor, Tensor]:
    """The same of larger ones, a few rows at a time: the second look finds in cache what the first one has read."""
    squares, along = [], []
    for grad, probe in zip(grads, probes, strict=True):
        left, right = probe.lefts[0], probe.rights[0]
        rows = grad.view(left.shape[0], -1).split(max(1, PART // right.shape[0]))
        found = [(squared_norm(part), part.mv(right)) for part in rows]
        sizes, parts = zip(*found, strict=True)
        squares.append(sizes[0] if len(sizes) == 1 else torch.stack(sizes).sum())
        along.append(left.dot(parts[0] if len(parts) == 1 else torch.cat(parts)))
    return torch.stack(squares), torch.stack(along).unsqueeze(1)
