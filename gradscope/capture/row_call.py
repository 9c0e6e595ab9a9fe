"""Calls of linear layers without further dimensions, of which small models are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradscope.capture.call import Call
from gradscope.capture.layout import BatchDim
from gradscope.contributions.row import RowSketch, sketch_rows
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import coarsest

if TYPE_CHECKING:
    from gradscope.capture.forward import Forward
    from gradscope.capture.kept import Kept
    from gradscope.capture.plan import Plan
    from gradscope.capture.recorder import Recorder


class RowCall(Call):
    """One call of such a layer: in an ordinary window the four numbers a sample are taken at once, the rest at the end.

    Attributes:
        sketch: those numbers.
        measured: whether tags have shown which row is whose.
    """

    __slots__ = ("measured", "sketch")

    def __init__(self, recorder: Recorder, plan: Plan, forward: Forward, kept: Kept, key: tuple[object, ...]) -> None:
        super().__init__(recorder, plan, forward, kept, key)
        self.sketch: RowSketch | None = None
        self.measured = False

    def on_grad(self, grad: Tensor) -> None:
        """Hook on the output: its gradient is here."""
        if not self._sketched(grad):
            super().on_grad(grad)

    def finish(self) -> None:
        """Note whose numbers those were, with all other calls' when the backward is over."""
        sketch, self.sketch = self.sketch, None
        step = self.forward.step
        if sketch is None or step is None:
            super().finish()
            return
        records = [step.of(leaf) for leaf in self._leaves()]
        for record in records:
            if record.reason:
                # Something else was said of it meanwhile.
                continue
            record.rule, record.sketch = self.rule.name, sketch
            record.dtype = coarsest(record.dtype, sketch.rows.dtype)
            record.assumed |= self.forward.ambiguous or not self.measured
        step.sketches.append((sketch, records))

    def _leaves(self) -> list[Leaf]:
        """The weight, and the bias if it is wanted."""
        return [leaf for leaf in (self.plan.leaves.get("weight"), self.plan.leaves.get("bias")) if leaf and leaf.wanted]

    def _sketched(self, grad: Tensor) -> bool:
        """Whether this is the usual case, and its numbers were taken."""
        recorder, forward, layouts = self.recorder, self.forward, self.plan.layouts
        if recorder.tagging is not None or recorder.guarding or recorder.options.moments or torch.is_grad_enabled():
            return False
        if not recorder.enter(forward) or recorder.more_backwards() or self.by_operators or forward.tags is not None:
            return False
        if self.grad is not None:
            # An earlier backward of a kept graph came by.
            return False
        known = layouts.known(self.place)
        if type(known) is not BatchDim or known.dim or layouts.negligible or grad.shape[0] != forward.samples:
            return False
        weight, bias = self.plan.leaves.get("weight"), self.plan.leaves.get("bias")
        probe = None if weight is None or not weight.wanted else weight.probe
        if probe is None or len(probe.lefts) != 1 or not self._alone():
            return False
        if bias is not None and bias.wanted and (bias.probe is None or bias.probe.left is not probe.left):
            return False
        try:
            x = self.kept.read()[0]
        except RuntimeError:
            return False
        if not (x.dtype is grad.dtype is probe.left.dtype and x.is_floating_point()):
            return False
        self.sketch = sketch_rows(x, grad, probe)
        if self.sketch is None:
            return False
        self.measured = known.measured
        forward.waiting.append(self)
        self.kept.release()
        return True

    def _alone(self) -> bool:
        """Whether no other call uses these parameters, and nothing is said of them yet."""
        step, uses = self.forward.step, self.forward.uses
        return step is not None and all(
            uses.get(leaf.index) == 1 and leaf.index not in step.measured and leaf.index not in step.second
            for leaf in self.plan.leaves.values()
        )
