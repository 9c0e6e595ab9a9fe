"""Calls of linear layers without further dimensions, of which small models are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from gradscope.capture.layout import BatchDim
from gradscope.capture.prompt_call import PromptCall, Taken
from gradscope.contributions.row import RowSketch, sketch_rows
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
    """

    __slots__ = ("sketch",)

    def __init__(self, recorder: Recorder, plan: Plan, forward: Forward, kept: Kept, key: tuple[object, ...]) -> None:
        super().__init__(recorder, plan, forward, kept, key)
        self.sketch: RowSketch | None = None

    def finish(self) -> None:
        """Note whose numbers those were."""
        sketch, self.sketch = self.sketch, None
        step, layout = self.forward.step, self.layout
        if sketch is None or step is None or layout is None:
            super().finish()
            return
        self.taken = None
        records = [step.of(leaf) for leaf in self.own.values()]
        for record in records:
            if record.reason:
                # Something else was said of it meanwhile.
                continue
            record.rule, record.sketch = self.rule.name, sketch
            record.dtype = coarsest(record.dtype, sketch.rows.dtype)
            record.assumed |= self.forward.ambiguous or not layout.measured
        step.sketches.append((sketch, records))

    def _take(self, grad: Tensor, layout: BatchDim) -> Taken | None:
        self.sketch = self._sketched(grad, layout)
        return super()._take(grad, layout) if self.sketch is None else Taken(grad.dtype, [])

    def _sketched(self, grad: Tensor, layout: BatchDim) -> RowSketch | None:
        """Those numbers, where they are all that is wanted and the weight and the bias are looked at along one direction."""
        step, weight, bias = self.forward.step, self.own.get("weight"), self.own.get("bias")
        if step is None or weight is None or layout.dim or self.recorder.options.moments:
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
        return sketch_rows(x, grad, probe)
