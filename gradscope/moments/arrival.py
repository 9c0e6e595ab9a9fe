"""What autograd added to parameters during one backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.contributions import Probe
from gradscope.contributions.precision import BLOCK, squared_norm

#: Vectors up to this many elements are read together: for them calls cost more than what they compute.
SHORT = 1 << 12

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
    """

    __slots__ = ("dtype", "fresh", "probe", "squared_norm", "times")

    def __init__(self, squared_norm: Tensor, probe: Tensor, dtype: torch.dtype, fresh: Tensor | None = None) -> None:
        self.squared_norm = squared_norm
        self.probe = probe
        self.times = 1
        self.dtype = dtype
        self.fresh = fresh

    @classmethod
    def of(cls, grad: Tensor, probe: Probe, *, keep: bool = False) -> Arrival:
        """The numbers of a gradient, and a copy of it on request."""
        # With create_graph it has a graph of its own.
        grad = grad.detach()
        fresh = (grad.to_dense() if grad.is_sparse else grad.clone()) if keep else None
        return cls(squared_norm(grad), probe.of(grad), grad.dtype, fresh)

    def add(self, grad: Tensor, probe: Probe) -> None:
        """A further arrival in the same backward (a weight used inside and outside a reentrant checkpoint)."""
        grad = grad.detach()
        self.squared_norm = self.squared_norm + squared_norm(grad)
        self.probe = self.probe + probe.of(grad)
        self.times += 1
        if self.fresh is not None:
            self.fresh = self.fresh + grad

    def merge(self, later: Arrival) -> None:
        """What a later backward of the same micro-step added; both must have kept their gradients."""
        self.probe = self.probe + later.probe
        self.times = max(self.times, later.times)
        if self.fresh is not None and later.fresh is not None:
            self.fresh = self.fresh + later.fresh
            self.squared_norm = squared_norm(self.fresh)
        else:
            self.squared_norm = self.squared_norm + later.squared_norm


def arrivals_of(grads: Sequence[Tensor], probes: Sequence[Probe]) -> list[Arrival]:
    """The numbers of many gradients, in as few operators as there can be.

    Args:
        grads: dense or sparse.
        probes: random directions for each.
    """
    found: list[Arrival | None] = [None] * len(grads)
    vectors: dict[object, list[int]] = {}
    matrices: dict[object, list[int]] = {}
    for i, (grad, probe) in enumerate(zip(grads, probes, strict=True)):
        dtype = grad.dtype
        plain = len(probe.lefts) == 1 and grad.layout is torch.strided and dtype in (torch.float32, torch.float64)
        if plain and grad.dim() == 1 and grad.shape[0] <= SHORT:
            vectors.setdefault((dtype, grad.device, grad.shape[0]), []).append(i)
        elif plain and grad.dim() > 1 and grad.is_contiguous() and grad.numel() % BLOCK == 0:
            matrices.setdefault((dtype, grad.device), []).append(i)
        else:
            found[i] = Arrival.of(grad, probe)
    for read, groups in ((_vectors, vectors), (_matrices, matrices)):
        for indices in groups.values():
            squares, along = read([grads[i].detach() for i in indices], [probes[i] for i in indices])
            for i, square, one in zip(indices, squares.unbind(), along.unsqueeze(1).unbind(), strict=True):
                found[i] = Arrival(square, one, grads[i].dtype)
    return [arrival for arrival in found if arrival is not None]


def _vectors(grads: Sequence[Tensor], probes: Sequence[Probe]) -> tuple[Tensor, Tensor]:
    """Squared norms, float64, and projections of vectors of one length."""
    if len(grads) < MANY:
        pairs = [(grad.dot(grad), grad.dot(probe.lefts[0])) for grad, probe in zip(grads, probes, strict=True)]
        squares, along = zip(*pairs, strict=True)
        return torch.stack(squares).double(), torch.stack(along)
    table = torch.stack(list(grads))
    lengths: Tensor = torch.linalg.vector_norm(table, dim=1)
    return lengths.double().square_(), table.mul_(torch.stack([probe.lefts[0] for probe in probes])).sum(1)


def _matrices(grads: Sequence[Tensor], probes: Sequence[Probe]) -> tuple[Tensor, Tensor]:
    """The same of gradients that are a multiple of a block long: float32 sums over longer rows would lose digits."""
    lengths, along = [], []
    for grad, probe in zip(grads, probes, strict=True):
        blocks: Tensor = torch.linalg.vector_norm(grad.view(-1, BLOCK), dim=1)
        lengths.append(torch.linalg.vector_norm(blocks, dtype=torch.float64))
        left, right = probe.lefts[0], probe.rights[0]
        rows = grad if grad.dim() == 2 else grad.view(left.shape[0], -1)
        along.append(left.dot(rows.mv(right) if right.shape[0] > 1 else rows.view(-1)))
    return torch.stack(lengths).square_(), torch.stack(along)
