"""Calls of layers in ordinary windows: what must be read while backward runs is read at once, the rest follows at its end.

Python that runs between large products finds its own code and objects out of cache; that of all layers together finds them there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gradscope.capture.call import Call
from gradscope.capture.layout import BatchDim
from gradscope.contributions import Dense, RowBias
from gradscope.contributions.figures import Figures
from gradscope.moments.leaf import Leaf

if TYPE_CHECKING:
    from gradscope.capture.forward import Forward
    from gradscope.capture.kept import Kept
    from gradscope.capture.plan import Plan
    from gradscope.capture.recorder import Recorder


class Taken(NamedTuple):
    """What one call added to its parameters.

    Attributes:
        dtype: precision that it was computed from.
        found: for each parameter its figures, or few numbers whose figures can wait for those of other parameters.
    """

    dtype: torch.dtype
    found: list[Figures | Dense]


class PromptCall(Call):
    """One call of a layer with a rule in a forward that is like those before it; whatever is not goes the longer way.

    Attributes:
        likely: which row of its output is whose, if the graph looks as the last one did; None where that is not known.
        layout: the same, once the forward has ended, where this is its parameters' only call; else None.
        own: the layer's parameters that ask for a gradient, by local name.
        taken: what was read of them.
    """

    likely: BatchDim | None = None
    layout: BatchDim | None = None
    taken: Taken | None = None
    key: tuple[object, ...] = ()

    def __init__(self, recorder: Recorder, plan: Plan, forward: Forward, kept: Kept, own: dict[str, Leaf]) -> None:
        # Not as any other call: that it is kept plainly is known.
        self.recorder = recorder
        self.plan = plan
        self.forward = forward
        self.kept = kept
        self.own = own

    def prepare(self) -> None:
        """The forward has ended: whether anything about this call is unusual."""
        layouts, forward = self.plan.layouts, self.forward
        known = layouts.known((forward.graph, self.key))
        if type(known) is not BatchDim or layouts.negligible or self.by_operators:
            return
        uses, second = forward.uses, forward.second
        for leaf in self.own.values():
            if uses.get(leaf.index) != 1 or leaf.index in second:
                return
        self.layout = known

    def on_grad(self, grad: Tensor) -> None:
        """Hook on the output: its gradient is here."""
        if self.layout is None or self.grad is not None or not self.recorder.enters_as_usual(self.forward):
            super().on_grad(grad)
            return
        if not self._take(grad, self.layout):
            super().on_grad(grad)
            return
        self.forward.waiting.append(self)
        self.kept.release()

    def finish(self) -> None:
        """Note what was read, with that of all other calls when the backward is over."""
        taken, self.taken = self.taken, None
        step, layout = self.forward.step, self.layout
        if taken is None or step is None or layout is None:
            super().finish()
            return
        assumed = self.forward.ambiguous or not layout.measured
        for leaf, found in zip(self.own.values(), taken.found, strict=True):
            if isinstance(found, Figures):
                step.note(leaf, found, self.rule.name, taken.dtype)
            else:
                step.add(leaf, found, self.rule.name, uses=1, last=True, dtype=taken.dtype)
            step.of(leaf).assumed |= assumed

    def _take(self, grad: Tensor, layout: BatchDim) -> bool:
        """Read what this call added to each of its parameters; False where the longer way must find out."""
        step, dim = self.forward.step, layout.dim
        if step is None or dim >= grad.dim() or grad.shape[dim] != self.forward.samples or grad.numel() == 0:
            return False
        measured = step.measured
        for leaf in self.own.values():
            if leaf.index in measured:
                return False
        try:
            described = self._describe(grad, layout)
        except Exception:  # the longer way says what has failed
            return False
        found: list[Figures | Dense] = []
        for name, leaf in self.own.items():
            contribution = described.get(name)
            if (
                contribution is None
                or contribution.samples != step.samples
                or contribution.shape != leaf.parameter.shape
            ):
                return False
            waits = isinstance(contribution, Dense) and type(contribution) is not RowBias and contribution.short
            found.append(contribution if waits else step.figures(leaf, contribution))  # type: ignore[arg-type]
        self.taken = Taken(grad.dtype, found)
        return True
