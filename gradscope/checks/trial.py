"""The user's step, run on trial: on windows of the batch, traced, judged, and everything put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from gradscope.checks.causes.transforms import constant_factors
from gradscope.checks.judge import Judged, Tolerance, judge
from gradscope.checks.layout import Layout
from gradscope.checks.precision import is_wide, rounding, widen, widened
from gradscope.checks.splits import Sizes
from gradscope.checks.state import Companions, Snapshot, reseed
from gradscope.checks.trace import WindowTrace
from gradscope.checks.tracer import Tracer
from gradscope.checks.truth import LossFn, find_truth, gradient
from gradscope.reference import take

Step = Callable[[Any, list[Any]], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """How a trial is run.

    Attributes:
        wide: in float64.
        calm: ``"as is"``, ``"no dropout"``, or ``"eval"``: what was switched off so that two runs can be compared.
        seed: the random state that every window starts from.
    """

    wide: bool
    calm: str = "as is"
    seed: int = 0


class Trial:
    """One step function with its model, loss and batch; each run starts from the same state and puts it back."""

    def __init__(
        self, step: Step, model: nn.Module, loss_fn: LossFn, batch: Any, companions: Companions, rtol: float | None
    ) -> None:
        self.step, self.model, self.loss_fn, self.batch = step, model, loss_fn, batch
        self.companions, self.rtol = companions, rtol
        self.snapshot = Snapshot(model, companions)
        self._modes: tuple[bool, ...] | None = None

    def judged(self, splits: Sequence[Sizes], windows: int, under: Conditions) -> list[Judged]:
        """Every window of every split, judged."""
        runs = [(sizes, *self.traced(sizes, windows, under)) for sizes in splits]
        tolerance = self.tolerance(under)
        pieces = []
        for sizes, traces, rows in runs:
            for number, (trace, own) in enumerate(zip(traces, rows, strict=True), 1):
                pieces.append((sizes, number, trace, self._truth(trace, own, under)))
        first = [judge(*piece, tolerance, ()) for piece in pieces]
        constant = constant_factors(first)
        return [judge(*piece, tolerance, constant) for piece in pieces] if constant else first

    def traced(self, sizes: Sizes, windows: int, under: Conditions) -> tuple[list[WindowTrace], list[list[slice]]]:
        """Run the step on consecutive windows, and tell what happened and which rows each micro-batch had."""
        rows = self._rows(sizes, windows)
        with self._conditions(under) as batch:
            layout = Layout.of(self.model)
            traces: list[WindowTrace] = []
            with Tracer(self.model, layout, self.companions) as tracer:
                for own in rows:
                    if not (traces and (traces[-1].steps or traces[-1].end_moved)):
                        self.model.zero_grad(set_to_none=True)
                    micro_batches = [_cloned(take(batch, part)) for part in own]
                    tracer.begin(micro_batches)
                    self.step(self.model, micro_batches)
                    traces.append(tracer.end())
        return traces, rows

    def adopt_modes(self, trace: WindowTrace) -> None:
        """From now on run everything, also the loss, in the modes that the step gave the modules."""
        self._modes = trace.modes

    def tolerance(self, under: Conditions) -> Tolerance:
        """What counts as equal under these conditions."""
        return tolerance_of(self.model, wide=under.wide, rtol=self.rtol)

    def is_random(self, under: Conditions) -> bool:
        """Whether the gradient of the loss changes with the random state."""
        results = []
        for seed in (under.seed, under.seed + 1):
            with self._conditions(Conditions(under.wide, under.calm, seed)) as batch:
                results.append(gradient(self.model, self.loss_fn, batch, Layout.of(self.model)))
        size = float(results[0].norm())
        return float((results[0] - results[1]).norm()) > self.tolerance(under).gradient * size

    def _rows(self, sizes: Sizes, windows: int) -> list[list[slice]]:
        """Rows of each micro-batch of each window; windows are disjoint where the batch is large enough."""
        samples = _samples(self.batch)
        rows = []
        for window in range(windows):
            at = window * sum(sizes) if (window + 1) * sum(sizes) <= samples else samples - sum(sizes)
            own = []
            for size in sizes:
                own.append(slice(at, at + size))
                at += size
            rows.append(own)
        return rows

    def _truth(self, trace: WindowTrace, own: list[slice], under: Conditions) -> Any:
        with self._conditions(under) as batch:
            layout = trace.layout
            with torch.no_grad():
                for p, place in zip(layout.parameters, layout.slices, strict=True):
                    value = trace.start[place]
                    value = torch.view_as_complex(value.reshape(-1, 2)) if p.is_complex() else value
                    p.copy_(value.reshape(p.shape))
            whole = take(batch, slice(own[0].start, own[-1].stop))
            return find_truth(self.model, self.loss_fn, layout, whole, [take(batch, part) for part in own])

    @contextmanager
    def _conditions(self, under: Conditions) -> Iterator[Any]:
        """The state at the start, under these conditions; all is put back afterwards."""
        self.snapshot.restore()
        for module, training in zip(self.model.modules(), self._modes or (), strict=False):
            module.training = training
        calmed = _calm(self.model, under.calm)
        try:
            if under.wide:
                widen(self.model, self.companions.optimizers)
            for p in self.model.parameters():
                p.grad = None
            reseed(under.seed)
            with torch.compiler.set_stance("force_eager"):
                yield widened(self.batch) if under.wide else self.batch
        finally:
            for module in calmed:
                module.__dict__.pop("train", None)
            self.snapshot.restore()


def tolerance_of(model: nn.Module, *, wide: bool, rtol: float | None) -> Tolerance:
    """In float64, 1e-5 separates right from wrong; otherwise it follows the parameters' rounding."""
    if wide or is_wide(model):
        return Tolerance(1e-5 if rtol is None else rtol, 1e-6)
    u = rounding(model)
    return Tolerance(min(0.3, max(1e-3, 32 * u)) if rtol is None else rtol, min(0.1, max(1e-4, 16 * u)))


def _calm(model: nn.Module, how: str) -> list[nn.Module]:
    """Switch modules to eval mode and keep the user's ``model.train()`` from switching them back."""
    chosen = [m for m in model.modules() if how == "eval" or isinstance(m, nn.modules.dropout._DropoutNd)]
    if how == "as is":
        return []
    for module in chosen:
        module.training = False
        module.__dict__["train"] = lambda mode=True, module=module: module
    return chosen


def _samples(batch: Any) -> int:
    return next(int(leaf.shape[0]) for leaf in tree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim())


def _cloned(batch: Any) -> Any:
    return tree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)
