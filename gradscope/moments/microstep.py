"""The figures of one micro-step, gathered while its backward runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from gradscope.contributions import (
    Contribution,
    Dense,
    Row,
    RowBias,
    RowSketch,
    SketchMemory,
    settle,
    settle_vectors,
    sum_of_uses,
)
from gradscope.contributions.figures import Figures
from gradscope.contributions.precision import squared_norm
from gradscope.contributions.workspace import Workspace
from gradscope.moments.arrival import Arrival
from gradscope.moments.leaf import Leaf


class Measured:
    """What one micro-step knows of one parameter. Tensors stay on their device until the window closes.

    Attributes:
        rule: what described the contributions.
        reason: why there are none, in words; empty where there are.
        norms: ``‖hᵢ‖²``, float64 ``[n]``; NaN where ``subsample`` left a sample out.
        probes: ``⟨hᵢ, R⟩``, ``[n, k]``.
        second_moment: ``Σ|hᵢ|²`` elementwise, with ``moments=True``.
        arrival: what autograd gave the parameter.
        signed_sum: ``‖Σ rᵢhᵢ‖²`` by the tagged inner backward.
        signed_probe: ``⟨Σ rᵢhᵢ, R⟩`` likewise, ``[k]``.
        sketch: what its figures will be made of: a linear layer's when somebody looks, a vector's when the backward ends.
        parameter_probe: ``⟨θ, R⟩``, ``[k]``, where it may be needed to name an L2 term.
        built: ``‖hᵢ‖²`` of the step's ``spot`` sample, from that sample's gradient in full, float64 scalar.
        spoiled: samples interact, so that no estimate would mean anything either.
        second_pass: something above the parameter's owner was run again for it.
        unplaced: rows fit no sample, although no layer is known that mixes samples.
        assumed: which row belongs to which sample was assumed, not measured.
        dtype: lowest precision among the tensors that went into it.
    """

    # On the class: there is one such record for each parameter of each micro-step, and most of these stay as they are.
    rule: str = ""
    reason: str = ""
    norms: Tensor | None = None
    probes: Tensor | None = None
    second_moment: Tensor | None = None
    arrival: Arrival | None = None
    signed_sum: Tensor | None = None
    signed_probe: Tensor | None = None
    built: Tensor | None = None
    sketch: RowSketch | Tensor | None = None
    parameter_probe: Tensor | None = None
    spoiled: bool = False
    unplaced: bool = False
    second_pass: bool = False
    assumed: bool = False
    dtype: torch.dtype = torch.float64

    def __init__(self, **known: Any) -> None:
        self.__dict__.update(known)

    def take(self, found: Figures) -> None:
        """Figures, and by which algorithm."""
        self.norms, self.probes, self.second_moment = found.squares, found.probes, found.second_moment
        if found.algorithm:
            self.rule = f"{self.rule} ({found.algorithm})"

    def gather(self) -> None:
        """Numbers are on the host from here on; what has the parameter's size stays where it is."""
        for name in ("norms", "probes", "built", "signed_sum", "signed_probe", "parameter_probe"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.cpu())
        if self.arrival is not None:
            self.arrival.gather()

    @property
    def described(self) -> bool:
        """Whether it has figures, or will have them when they are looked at."""
        return self.norms is not None or self.sketch is not None


class Held:
    """Uses of one parameter that wait for each other, since they are summed per sample before squaring."""

    __slots__ = ("contributions", "uses")

    def __init__(self, uses: int) -> None:
        self.uses = uses
        self.contributions: list[Contribution] = []


class MicroStep:
    """One micro-batch's contributions.

    Args:
        samples: n.
        moments: whether elementwise second moments are wanted.
        chosen: indices of the samples whose squares are computed, or None for all.
        budget: bytes that held uses may keep alive, or None.
        spot: one sample whose gradients are built in full, to compare their norms; None outside guard windows.
        workspace: algorithms and scratch memory.
    """

    def __init__(
        self, samples: int, *, moments: bool, chosen: Tensor | None, budget: int | None, spot: int | None = None,
        workspace: Workspace | None = None,
    ) -> None:  # fmt: skip
        self.samples = samples
        self.spot = spot
        self.workspace = workspace or Workspace(budget=budget)
        self.moments = moments
        self.chosen = chosen
        self.budget = budget
        self.signs: Tensor | None = None
        #: Whether its parameters lie on several devices.
        self.spread = False
        self.measured: dict[int, Measured] = {}
        self.held: dict[int, Held] = {}
        self.sketches: list[tuple[RowSketch, list[Measured]]] = []
        #: Where sketches of its layers go.
        self.memory: SketchMemory | None = None
        #: Contributions to vector parameters and the direction along which each is looked at, by what must be alike.
        self.vectors: dict[object, list[tuple[Tensor, Tensor, Measured]]] = {}
        #: Parameters that only a second pass describes; what else is said of them is ignored.
        self.second: set[int] = set()
        self.held_bytes = 0
        self.peak_bytes = 0
        self.weights: Tensor | None = None
        self.ids: tuple[str, ...] | None = None
        self.notices: list[str] = []

    def of(self, leaf: Leaf) -> Measured:
        """The record of one parameter, made when it is first needed."""
        record = self.measured.get(leaf.index)
        if record is None:
            record = self.measured[leaf.index] = Measured()
        return record

    @property
    def arrived(self) -> bool:
        """Whether anything reached a parameter."""
        return any(record.arrival is not None for record in self.measured.values())

    def withhold(self, leaf: Leaf, reason: str, *, spoiled: bool = False, second_pass: bool = False) -> None:
        """No figures by a rule for this parameter in this micro-step, and why; the first reason stays."""
        if leaf.index in self.second and not second_pass:
            return
        record = self.of(leaf)
        record.spoiled |= spoiled
        record.reason = record.reason or reason
        record.norms = record.probes = record.second_moment = record.sketch = None
        self._drop(leaf.index)

    def add(
        self, leaf: Leaf, contribution: Contribution, rule: str, *, uses: int, last: bool, dtype: torch.dtype,
        second_pass: bool = False,
    ) -> None:  # fmt: skip
        """One use of a parameter; the figures are computed with its last use.

        Args:
            leaf: the parameter.
            contribution: what this use added.
            rule: what described it.
            uses: how many uses the forward recorded.
            last: whether no further backward of this micro-step can bring more (else all are held until the end).
            dtype: precision that the contribution was computed from.
            second_pass: whether a module above the parameter's owner, or a whole operator, was run again for it.
        """
        if leaf.index in self.second and not second_pass:
            return
        record = self.of(leaf)
        record.second_pass |= second_pass
        if record.reason:
            return
        record.dtype = coarsest(record.dtype, dtype)
        if record.norms is not None or record.sketch is not None:
            self.withhold(leaf, "it was used again after its squares had been taken, so that cross terms are missing")
            return
        record.rule = rule if not record.rule or record.rule == rule else f"{record.rule} + {rule}"
        held = self.held.get(leaf.index)
        if held is None and uses <= 1 and last:
            if not self._postpone(record, leaf, contribution):
                self._square(record, leaf, contribution)
            return
        if held is None:
            held = self.held[leaf.index] = Held(uses)
        held.contributions.append(contribution)
        self.held_bytes += contribution.nbytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        if last and len(held.contributions) >= held.uses:
            self._release(leaf, held)
        elif self.budget is not None and self.held_bytes > self.budget:
            self.withhold(
                leaf, f"its {held.uses} uses would hold {self.held_bytes / 2**20:.1f} MiB, more than the budget of "
                f"{self.budget / 2**20:.1f} MiB"
            )  # fmt: skip

    def finish(self, leaves: list[Leaf]) -> None:
        """Square what still waits for further uses: none will come."""
        for index, held in list(self.held.items()):
            self._release(leaves[index], held)
        self._settle_vectors()

    def _release(self, leaf: Leaf, held: Held) -> None:
        contribution = sum_of_uses(held.contributions)
        self._drop(leaf.index)
        self._square(self.of(leaf), leaf, contribution)

    def _drop(self, index: int) -> None:
        held = self.held.pop(index, None)
        if held is not None:
            self.held_bytes -= sum(c.nbytes for c in held.contributions)

    def _postpone(self, record: Measured, leaf: Leaf, contribution: Contribution) -> bool:
        """Whether the figures can wait for those of all layers of this kind: in ordinary windows only."""
        probe = leaf.probe
        if self.spot is not None or probe is None or len(probe.lefts) != 1:
            return False
        apart = self.moments and self.chosen is not None
        if isinstance(contribution, Dense) and type(contribution) is not RowBias and contribution.short and not apart:
            values = record.sketch = contribution.values
            alike = (values.shape, values.dtype, values.device, probe.left.dtype)
            self.vectors.setdefault(alike, []).append((values, probe.lefts[0], record))
            return True
        if self.moments:
            return False
        if type(contribution) is Row and contribution.short and not contribution.x.is_complex():
            record.sketch = contribution.sketch(probe)
            self.sketches.append((record.sketch, [record]))
            return True
        if type(contribution) is not RowBias or contribution.weight.along is not probe.left:
            return False
        sketch, records = self.sketches[-1]
        if sketch is not contribution.weight.sketched or len(records) != 1:
            return False
        record.sketch = sketch
        records.append(record)
        return True

    def gather(self) -> None:
        """Numbers of several devices can only be compared on the host."""
        if self.spread:
            self.spread = False
            for sketch, _ in self.sketches:
                sketch.memory = sketch.memory.on_host()
            for record in self.measured.values():
                record.gather()

    def settle(self) -> None:
        """The figures of layers whose contributions are rows, all at once; only when somebody looks at them."""
        settle_all([self])

    def settled(self, figures: Iterable[tuple[Tensor, ...]]) -> None:
        """What the sketches have come to."""
        for (sketch, records), found in zip(self.sketches, figures, strict=True):
            for number, record in enumerate(records):
                if record.sketch is sketch:
                    self._fill(record, found[2 * number], found[2 * number + 1])
        self.sketches = []

    def _settle_vectors(self) -> None:
        """The figures of vector parameters; those of one length at once."""
        pending, self.vectors = self.vectors, {}
        for group in pending.values():
            values, lefts, records = zip(*group, strict=True)
            squares, probes, moments = settle_vectors(values, lefts, moments=self.moments)
            for k, (value, record) in enumerate(zip(values, records, strict=True)):
                if record.sketch is value:
                    self._fill(record, squares[k], probes[k])
                    record.second_moment = None if moments is None else moments[k]

    def _fill(self, record: Measured, norms: Tensor, probes: Tensor) -> None:
        record.sketch, record.norms, record.probes = None, norms, probes
        if self.chosen is not None:
            # Norms of all are cheaper than choosing first.
            record.norms = torch.full_like(norms, float("nan"))
            record.norms[self.chosen] = norms[self.chosen]

    def _square(self, record: Measured, leaf: Leaf, contribution: Contribution) -> None:
        if self.spot is not None:
            record.built = squared_norm(contribution.one(self.spot))
        record.take(self.figures(leaf, contribution))

    def figures(self, leaf: Leaf, contribution: Contribution) -> Figures:
        """What one parameter's contributions come to: squares are those of the chosen samples, probes those of all."""
        chosen, workspace = self.chosen, self.workspace
        if chosen is None:
            return contribution.figures(leaf.probe, moments=self.moments, workspace=workspace)
        found = contribution.sampled(chosen, leaf.probe, moments=self.moments, workspace=workspace)
        if found.second_moment is None:
            return found
        return replace(found, second_moment=found.second_moment * (contribution.samples / max(1, chosen.numel())))

    def note(self, leaf: Leaf, found: Figures, rule: str, dtype: torch.dtype) -> None:
        """Figures of a parameter's only use.

        Args:
            leaf: the parameter.
            found: what its contributions came to.
            rule: what described them.
            dtype: precision that they were computed from.
        """
        record = self.of(leaf)
        if record.reason:
            # Something else was said of it meanwhile.
            return
        record.rule, record.dtype = rule, coarsest(record.dtype, dtype)
        record.take(found)


def settle_all(steps: Iterable[MicroStep]) -> None:
    """The figures of layers whose contributions are rows, of many micro-steps at once: all of equally many samples together."""
    groups: dict[object, list[MicroStep]] = {}
    for step in steps:
        if step.sketches:
            # Norms are multiplied in the precision that they have, whatever the others' is.
            kinds = tuple(sketch.alike for sketch, _ in step.sketches)
            groups.setdefault((step.samples, kinds), []).append(step)
    for own in groups.values():
        figures = iter(settle([sketch for step in own for sketch, _ in step.sketches]))
        for step in own:
            step.settled(itertools.islice(figures, len(step.sketches)))


@cache
def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype with the fewest digits."""
    return dtypes[0] if len(dtypes) == 1 else max(dtypes, key=_roundoff)


@lru_cache
def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def joined(steps: list[MicroStep], arrivals: Mapping[int, Arrival]) -> MicroStep:
    """Several forwards of different samples under one backward, as one micro-step of all their samples."""
    whole = MicroStep(sum(s.samples for s in steps), moments=steps[0].moments, chosen=None, budget=None)
    if any(step.chosen is not None for step in steps):
        starts = itertools.accumulate((step.samples for step in steps), initial=0)
        whole.chosen = torch.cat([start + (torch.arange(s.samples, device="cpu") if s.chosen is None else s.chosen)
                                  for s, start in zip(steps, starts, strict=False)])  # fmt: skip
    whole.spread = any(step.spread for step in steps)
    whole.peak_bytes = sum(step.peak_bytes for step in steps)
    whole.notices = [notice for step in steps for notice in step.notices]
    for index in sorted({index for step in steps for index in step.measured}):
        whole.measured[index] = _joined_record([step.measured.get(index) for step in steps], [s.samples for s in steps])
    return whole


def _joined_record(parts: list[Measured | None], sizes: list[int]) -> Measured:
    known = [part for part in parts if part is not None]
    result = Measured(rule=known[0].rule, reason=next((part.reason for part in known if part.reason), ""))
    result.assumed = any(part.assumed for part in known)
    if result.reason or any(part.norms is None for part in known):
        result.reason = result.reason or "one of the forwards in this backward could not be described sample by sample"
        return result
    norms, probes = [], []
    for part, size in zip(parts, sizes, strict=True):
        like = known[0]
        norms.append(like.norms.new_zeros(size) if part is None else part.norms)  # type: ignore[union-attr]
        probes.append(like.probes.new_zeros(size, like.probes.shape[1]) if part is None else part.probes)  # type: ignore[union-attr]
    result.norms, result.probes = torch.cat(norms), torch.cat(probes)  # type: ignore[arg-type]
    if known[0].second_moment is not None:
        result.second_moment = torch.stack([p.second_moment for p in known if p.second_moment is not None]).sum(0)
    result.dtype = coarsest(*(part.dtype for part in known))
    return result
