"""One rank's share of a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.accumulator import OpenWindow
from gradscope.contributions.precision import squared_norm
from gradscope.moments.arrival import size_of
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import coarsest
from gradscope.ranks.numbers import Head, Row, looks
from gradscope.ranks.shard import part_of, replicas
from gradscope.window import Window
from gradscope.window_sums import second_moment

#: Of a status of ``Coverage``, the field of ``Row`` that counts the ranks which have it.
FIELDS = {
    "exact": "exact",
    "second pass": "second_pass",
    "estimated": "estimated",
    "not measured": "withheld",
    "mismatch": "mismatch",
}


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What this rank brings to a window.

    Attributes:
        head: its own numbers.
        rows: each parameter's, in the order that all ranks agree on.
        window: its own samples alone, as if there were no others; None where they could not be summed.
        grads: per parameter name, the reduced gradient of this window, where elementwise moments are wanted.
        moments: likewise ``Σ|hᵢ|²`` of this rank's samples.
        words: what it has to say.
        dtype: the coarsest precision among the gradients.
    """

    head: Head
    rows: Sequence[Row]
    window: Window | None
    grads: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    words: Mapping[str, str]
    dtype: torch.dtype = torch.float64


def share_of(opened: OpenWindow, window: Window, names: Sequence[str], head: Head) -> Share:
    """What one rank brings to a window.

    Args:
        opened: what was gathered since the last step.
        window: the same, closed.
        names: the parameters, in the order that all ranks agree on.
        head: index, ahead and directions; the rest is filled in here.
    """
    leaves = {leaf.info.name: leaf for leaf in opened.leaves}
    measured = _Numbers(opened, head.directions)
    for name in names:
        if name in leaves and leaves[name].index in opened.arrived:
            measured.add(leaves[name])
    found = measured.read()
    rows = [_row(opened, window, leaves[name], found) if name in leaves else Row() for name in names]
    weights = [_weights(step.weights, step.samples) for step in opened.steps]
    head = head._replace(
        samples=window.samples,
        micro_steps=len(opened.steps),
        weight=float(sum(part.sum() for part in weights)),
        weight_sq=float(sum(part.square().sum() for part in weights)),
        part_weight_sq=float(sum(part.sum().square() for part in weights)),
    )
    words = {name: one.reason for name, one in window.coverage.items() if one.reason and not one.measured}
    words = {name: text for name, text in words.items() if name in leaves and not leaves[name].ignored}
    words |= {f"\n{k}": notice for k, notice in enumerate(window.notices)}
    grads = {name: opened.grads[leaf.index] for name, leaf in leaves.items() if leaf.index in opened.grads}
    moments = {name: total for name in grads if (total := second_moment(opened.steps, leaves[name].index)) is not None}
    rows = [row._replace(moments=float(name in moments)) for name, row in zip(names, rows, strict=True)]
    arrivals = [record.arrival for step in opened.steps for record in step.measured.values()]
    dtype = coarsest(
        torch.float64, *{arrival.dtype for arrival in arrivals if arrival is not None and not arrival.dtype.is_complex}
    )
    return Share(head, rows, window, grads, moments, words, dtype)


def _weights(weights: Tensor | None, samples: int) -> Tensor:
    return torch.ones(samples, dtype=torch.float64, device="cpu") if weights is None else weights


def _row(opened: OpenWindow, window: Window, leaf: Leaf, found: Mapping[int, Sequence[float]]) -> Row:
    coverage = window.coverage[leaf.info.name]
    if leaf.ignored:
        return Row()
    row = Row()
    if coverage.status in FIELDS:
        row = row._replace(**{FIELDS[coverage.status]: 1.0})
    if leaf.index not in found:
        return row
    part_sq, grad_sq, *probes = found[leaf.index]
    sums = window.parameters.get(leaf.info.name)
    records = [step.measured[leaf.index] for step in opened.steps if leaf.index in step.measured]
    if coverage.error == coverage.error:
        row = row._replace(errors=coverage.error**2, checked=1.0)
    unreduced = leaf.grad is None
    if not records and part_sq == 0:
        # A rank without samples adds nothing to the sum.
        row = row._replace(withheld=0.0)
    return row._replace(
        arrived=1.0,
        spoiled=float(any(record.spoiled for record in records)),
        unreduced=float(unreduced),
        own_sq=sums.contribution_sq_sum if sums is not None and coverage.measured and not opened.by_parts else 0.0,
        part_sq=part_sq,
        grad_sq=grad_sq,
        grad_sq_sq=grad_sq * grad_sq,
        **{
            f"{kind}_{k}": x
            for kind, part in (("here", probes[:4]), ("reduced", probes[4:]))
            for k, x in enumerate(part)
        },
    )


class _Numbers:
    """Numbers of all parameters, brought to the host together: a few operators for each would cost more than they compute.

    Args:
        opened: the window.
        directions: of its probes; negative where they are not those of other ranks.
    """

    def __init__(self, opened: OpenWindow, directions: float) -> None:
        self.opened, self.probed, self._looks = opened, directions >= 0, looks(directions)
        self._found: dict[int, list[float]] = {}
        #: Tensors of one number or two, and where in a parameter's numbers they are added, in multiples of what.
        self._waiting: list[tuple[Tensor, list[float], int, float]] = []

    def add(self, leaf: Leaf) -> None:
        """Everything that is needed of one parameter."""
        found = self._found[leaf.index] = [0.0] * 10
        arrivals = [step.measured[leaf.index].arrival for step in self.opened.steps if leaf.index in step.measured]
        known = [arrival for arrival in arrivals if arrival is not None]
        sizes = [one.squared_norm for one in known]
        if not known and leaf.index in self.opened.grad_sq:
            sizes = [size_of(self.opened.grad_sq[leaf.index])]
        self._waiting += [(size, found, 0, 1.0) for size in sizes]
        if self.probed:
            self._waiting += [(one.probe, found, 2, 1.0) for one in known if one.probe.dim() == 1]
        grad = leaf.grad
        if grad is None:
            return
        grad = grad.detach() if leaf.baseline is None else grad.detach() - leaf.baseline
        share = 1 / replicas(leaf)
        self._waiting.append((squared_norm(grad), found, 1, share))
        if self.probed and leaf.probe is not None and grad.numel():
            self._waiting.append((part_of(leaf.probe, leaf, grad).of(grad), found, 6, share))

    def read(self) -> dict[int, list[float]]:
        """Per parameter index ``part_sq``, ``grad_sq``, and eight parts of probes."""
        alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for k, (tensor, *_) in enumerate(self._waiting):
            alike.setdefault((tensor.device, tensor.dtype), []).append(k)
        for places in alike.values():
            numbers = iter(torch.cat([self._waiting[k][0].reshape(-1) for k in places]).tolist())
            for k in places:
                tensor, found, at, factor = self._waiting[k]
                values = [next(numbers) * factor for _ in range(tensor.numel())]
                if at < 2:
                    found[at] += values[0]
                    continue
                # Real and imaginary parts; zeros for a direction that is not looked along.
                for number, value in enumerate(values[self._looks] if len(values) == 2 else values):
                    found[at + 2 * number] += value.real
                    found[at + 2 * number + 1] += value.imag
        return self._found
