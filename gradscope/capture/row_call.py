"""Calls of linear layers without further dimensions, of which small models are made."""

from __future__ import annotations

from torch import Tensor

from gradscope.capture.layout import BatchDim
from gradscope.capture.prompt_call import PromptCall
from gradscope.contributions.row import RowSketch, SketchMemory, row_moments, sketch_rows
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import Measured, coarsest


class RowCall(PromptCall):
    """One call of such a layer: four numbers a sample are taken at once.

    Attributes:
        sketch: those numbers.
        moments: second moments of the weight and of the bias, where these are wanted.
    """

    sketch: RowSketch | None = None
    #: The weight, and the bias if there is one.
    pair: tuple[Leaf, ...] = ()
    moments: tuple[Tensor, Tensor] | tuple[None, None] = (None, None)

    def finish(self) -> None:
        """Note whose numbers those were."""
        sketch, self.sketch = self.sketch, None
        step, layout = self.forward.step, self.layout
        if sketch is None or step is None or layout is None:
            super().finish()
            return
        rule, dtype, assumed = self.rule.name, sketch.memory.dtype, self.forward.ambiguous or not layout.measured
        records: list[Measured] = []
        for leaf, moment in zip(self.pair, self.moments, strict=False):
            record = step.of(leaf)
            records.append(record)
            if record.reason:
                # Something else was said of it meanwhile.
                continue
            record.rule, record.sketch, record.dtype = rule, sketch, coarsest(record.dtype, dtype)
            if moment is not None:
                record.second_moment = moment
            if assumed:
                record.assumed = True
        self.moments = (None, None)
        step.sketches.append((sketch, records))

    def _take(self, grad: Tensor, layout: BatchDim) -> bool:
        self.sketch = self._sketched(grad, layout)
        return self.sketch is not None or super()._take(grad, layout)

    def _sketched(self, grad: Tensor, layout: BatchDim) -> RowSketch | None:
        """Those numbers, where they are all that is wanted and the weight and the bias are looked at along one direction."""
        own, forward = self.own, self.forward
        step, weight, bias = forward.step, own.get("weight"), own.get("bias")
        if step is None or weight is None or layout.dim or (step.moments and step.chosen is not None):
            return None
        probe = weight.probe
        if probe is None or len(probe.lefts) != 1 or grad.shape[0] != forward.samples or weight.index in step.measured:
            return None
        if bias is None:
            self.pair = (weight,)
        elif bias.probe is None or bias.probe.left is not probe.left or bias.index in step.measured:
            return None
        else:
            self.pair = (weight, bias)
        try:
            x = self.kept.read()[0]
        except RuntimeError:
            return None
        if not (x.dtype is grad.dtype is probe.left.dtype and x.is_floating_point()):
            return None
        workspace, memory = step.workspace, step.memory
        if memory is None or not memory.has_room(x.dtype):
            # One for all layers; those without a sketch leave their places empty.
            memory = step.memory = SketchMemory.of(forward.rows, forward.samples, x.dtype)
        if not step.moments:
            return sketch_rows(x, grad, probe, None, memory)
        squares = (
            workspace.buffer("squares of inputs", x.shape, x),
            workspace.buffer("squares of rows", grad.shape, grad),
        )
        found = sketch_rows(x, grad, probe, squares, memory)
        if found is not None:
            self.moments = row_moments(squares, workspace)
        return found
