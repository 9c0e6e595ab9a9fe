"""Calls of linear layers without further dimensions, of which small models are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from gradscope.capture.layout import BatchDim
from gradscope.capture.prompt_call import PromptCall, Taken
from gradscope.contributions.row import RowSketch, row_moments, sketch_rows
from gradscope.moments.microstep import coarsest

if TYPE_CHECKING:
    from gradscope.capture.forward import Forward
    from gradscope.capture.kept import Kept
    from gradscope.capture.plan import Plan
    from gradscope.capture.recorder import Recorder


class RowCall(PromptCall):
    """One call of such a layer: four numbers a sample are taken at once.

    Attributes:
        sketch: those numbers.
        moments: second moments of the weight and of the bias, where these are wanted.
    """

    __slots__ = ("moments", "sketch")

    def __init__(self, recorder: Recorder, plan: Plan, forward: Forward, kept: Kept, key: tuple[object, ...]) -> None:
        super().__init__(recorder, plan, forward, kept, key)
        self.sketch: RowSketch | None = None
        self.moments: tuple[Tensor, Tensor] | None = None

    def finish(self) -> None:
        """Note whose numbers those were."""
        sketch, self.sketch = self.sketch, None
        step, layout = self.forward.step, self.layout
        if sketch is None or step is None or layout is None:
            super().finish()
            return
        self.taken = None
        # A bias may have been registered before its weight.
        records = [step.of(self.own[name]) for name in ("weight", "bias") if name in self.own]
        moments, self.moments = self.moments or (None, None), None
        for record, moment in zip(records, moments, strict=False):
            if record.reason:
                # Something else was said of it meanwhile.
                continue
            record.second_moment = moment
            record.rule, record.sketch = self.rule.name, sketch
            record.dtype = coarsest(record.dtype, sketch.table.dtype)
            record.assumed |= self.forward.ambiguous or not layout.measured
        step.sketches.append((sketch, records))

    def _take(self, grad: Tensor, layout: BatchDim) -> Taken | None:
        self.sketch = self._sketched(grad, layout)
        return super()._take(grad, layout) if self.sketch is None else Taken(grad.dtype, [])

    def _sketched(self, grad: Tensor, layout: BatchDim) -> RowSketch | None:
        """Those numbers, where they are all that is wanted and the weight and the bias are looked at along one direction."""
        step, weight, bias = self.forward.step, self.own.get("weight"), self.own.get("bias")
        if step is None or weight is None or layout.dim or (step.moments and step.chosen is not None):
            return None
        probe = weight.probe
        if probe is None or len(probe.lefts) != 1 or grad.shape[0] != self.forward.samples:
            return None
        if bias is not None and (bias.probe is None or bias.probe.left is not probe.left):
            return None
        if any(leaf.index in step.measured for leaf in self.own.values()):
            return None
        try:
            x = self.kept.read()[0]
        except RuntimeError:
            return None
        if not (x.dtype is grad.dtype is probe.left.dtype and x.is_floating_point()):
            return None
        workspace = step.workspace
        if not step.moments:
            return sketch_rows(x, grad, probe)
        squares = (
            workspace.buffer("squares of inputs", x.shape, x),
            workspace.buffer("squares of rows", grad.shape, grad),
        )
        found = sketch_rows(x, grad, probe, squares)
        if found is not None:
            self.moments = row_moments(squares, workspace)
        return found
