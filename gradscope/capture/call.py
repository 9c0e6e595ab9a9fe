"""One call of one layer: what it read, and what comes back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradscope.capture.forward import Forward
from gradscope.capture.kept import Kept
from gradscope.capture.layout import BatchDim, Layout, NoSamples, Rows
from gradscope.capture.negligible import largest, negligible_below
from gradscope.capture.plan import Plan
from gradscope.capture.tagged_rows import TaggedRows
from gradscope.contributions import Contribution, Dense, Outer, Scatter
from gradscope.contributions.gram import SharedBlocks
from gradscope.errors import MixedSamplesError
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import coarsest
from gradscope.rules import Rule

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder


class Call:
    """One call of a layer whose rule is known. The hook on its output keeps it alive, and nothing else does.

    Args:
        recorder: where figures go.
        plan: the layer's.
        forward: the model's call that this one is part of.
        kept: the layer's inputs.
        key: what tells this kind of call from others of the same layer.
    """

    # On the class: there is one such object for each layer of each micro-step, and most of these stay as they are.
    by_operators: bool = False
    #: What autocast computed in, where the layer is of many operators and its output need not show it.
    autocast: torch.dtype | None = None
    grad: Tensor | None = None
    #: What the layer's own node has saved, where the rule can use it.
    saved: tuple[Tensor, ...] = ()
    #: Of its input, where layers called just before or after read the same.
    shared: SharedBlocks | None = None
    tagged: TaggedRows | None = None

    def __init__(self, recorder: Recorder, plan: Plan, forward: Forward, kept: Kept, key: tuple[object, ...]) -> None:
        self.recorder = recorder
        self.plan = plan
        self.forward = forward
        forward.packs |= torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        self.kept = kept
        self.key = key

    @property
    def rule(self) -> Rule:
        """The layer's closed form."""
        rule = self.plan.rule
        if rule is None:
            raise RuntimeError(f"{self.plan.name} has no rule")
        return rule

    def on_grad(self, grad: Tensor) -> None:
        """Hook on the output: its gradient is here."""
        recorder = self.recorder
        if recorder.tagging is not None:
            if recorder.tagging is self.forward:
                self._see_tags(grad)
                self.kept.pass_by()
            return
        if not recorder.enter(self.forward) or self.by_operators:
            return
        if recorder.more_backwards() or self.grad is not None:
            if self.grad is None:
                self.forward.waiting.append(self)
            self.grad = grad if self.grad is None else self.grad + grad
            return
        self.measure(grad, last=True)
        self.kept.release()

    def finish(self) -> None:
        """The micro-step's last backward is over: describe the sum of all that came back."""
        grad, self.grad = self.grad, None
        if grad is not None:
            self.measure(grad, last=True)
        self.kept.release()

    def measure(self, grad: Tensor, last: bool) -> None:
        """Describe this call's contributions and hand them to the micro-step."""
        step = self.forward.step
        if step is None:
            return
        leaves = self.wanted()
        if grad.numel() == 0:
            # No row was routed here, so no sample adds anything.
            for leaf in leaves.values():
                uses = self.forward.uses.get(leaf.index, 1)
                none = nothing(step.samples, leaf.parameter)
                step.add(leaf, none, self.rule.name, uses=uses, last=last, dtype=grad.dtype)
            return
        try:
            layout = self._layout(grad)
            described = self._if_negligible(grad, layout, leaves) if isinstance(layout, NoSamples) else None
            if isinstance(layout, NoSamples) and described is None:
                self._no_samples(layout, leaves)
                return
            described = self._describe(grad, layout) if described is None else described
        except MixedSamplesError as error:
            self.forward.mixing.append(self.plan.name)
            for leaf in leaves.values():
                step.withhold(leaf, str(error), spoiled=True)
            return
        except Exception as error:  # a rule may be the user's own; whatever it raises costs its own parameters only
            for leaf in leaves.values():
                step.withhold(leaf, self._failed(error))
            return
        assumed = self.forward.ambiguous or (isinstance(layout, BatchDim) and not layout.measured)
        if self.plan.layouts.negligible:
            outgrown = self.plan.layouts.outgrown(self.place, partial(largest, described))
            assumed |= outgrown
            self.forward.unsettled |= outgrown
        for name, leaf in leaves.items():
            contribution = described.get(name)
            if contribution is None:
                step.withhold(leaf, f"the rule {self.rule.name!r} does not describe it")
                continue
            if contribution.samples != step.samples or contribution.shape != leaf.parameter.shape:
                step.withhold(
                    leaf, f"the rule {self.rule.name!r} describes {contribution.samples} samples of shape "
                    f"{tuple(contribution.shape)}, expected {step.samples} of {tuple(leaf.parameter.shape)}"
                )  # fmt: skip
                continue
            uses = self.forward.uses.get(leaf.index, 1)
            dtype = coarsest(grad.dtype, self.autocast or grad.dtype)
            step.add(leaf, contribution, self.rule.name, uses=uses, last=last, dtype=dtype)
            step.of(leaf).assumed |= assumed

    def _failed(self, error: Exception) -> str:
        if "modified by an inplace operation" in str(error):
            return "its input was changed in place after it had read it (modified by an inplace operation)"
        text = (str(error).strip().splitlines() or [""])[0][:200]
        return f"the rule {self.rule.name!r} failed: {type(error).__name__}: {text}"

    def wanted(self) -> dict[str, Leaf]:
        """The layer's parameters that ask for a gradient."""
        return self.plan.wanted()

    @property
    def place(self) -> tuple[object, ...]:
        """What tells this kind of call, in a graph of this shape, from others."""
        return self.forward.graph, self.key

    @property
    def settled(self) -> bool:
        """Whether a dimension of the output is known to be that of the samples."""
        return type(self.plan.layouts.known((self.recorder.graph, self.key))) is BatchDim

    def without_samples(self, shape: torch.Size) -> bool | None:
        """Whether the output has no batch dimension; None where only the graph can tell."""
        if self.plan.layouts.known((None, self.key)) is not None:
            return True
        if self.rule.rows == "leading" and self._lead(len(shape)) == 0:
            return True
        few = self._lead(len(shape)) <= 2 and self.rule.rows == "leading"
        return None if few else False

    def runs_once(self) -> None:
        """The graph shows that the output is shared by all samples."""
        self.plan.layouts.remember((None, self.key), NoSamples(mixed=False), every_row_seen=True)

    def unsure(self, shape: torch.Size) -> bool:
        """Whether it is not known which of the output's rows belongs to which sample, if the graph is the last one's."""
        known = self.plan.layouts.known((self.recorder.graph, self.key))
        rows = shape[: self._lead(len(shape))].numel()
        return known is None or (isinstance(known, Rows) and known.sample_of_row.numel() != rows)

    def describe_unbatched(self, grads: Tensor) -> dict[str, Contribution]:
        """Contributions where the layer ran once for all samples and each sample's gradient of its output is known.

        Args:
            grads: ``[n, *output shape]``.
        """
        if self.rule.rows != "leading":
            raise ValueError(f"the rule {self.rule.name!r} needs inputs with a batch dimension")
        n = grads.shape[0]
        inputs = tuple(
            value.unsqueeze(0).expand(n, *value.shape) if isinstance(value, Tensor) else value
            for value in self.kept.read()
        )
        return self._by_rule(inputs, grads)

    def _if_negligible(
        self, grad: Tensor, layout: NoSamples, leaves: dict[str, Leaf]
    ) -> dict[str, Contribution] | None:
        """Contributions under the likeliest layout, where they are so small beside other uses' that it does not matter."""
        if self.forward.tags is None:
            return None
        lead, n, batch_dim = grad.shape[: self._lead(grad.dim())], self.forward.samples, self.recorder.options.batch_dim
        dims = [dim for dim in (batch_dim, *range(len(lead))) if dim < len(lead) and lead[dim] == n]
        if not (layout.mixed and layout.settled and dims) or self.forward.calls.get(self.plan.name, 0) < 2:
            return None
        guess = BatchDim(dims[0], measured=True)
        described = self._describe(grad, guess)
        limit = negligible_below(self.forward, leaves, described)
        if limit is None:
            return None
        self.plan.layouts.remember_negligible(self.place, guess, limit)
        return described

    def _no_samples(self, layout: NoSamples, leaves: dict[str, Leaf]) -> None:
        step = self.forward.step
        if layout.mixed:
            self.forward.mixed.append(self.plan.name)
        for leaf in leaves.values():
            if step is not None and layout.mixed:
                step.withhold(leaf, "samples interact after this layer", spoiled=True)
            elif step is not None:
                step.withhold(leaf, "its output has no batch dimension")

    def _lead(self, dims: int) -> int:
        """How many leading ones of an output's dimensions index rows."""
        return dims - self.rule.features(self.plan.module) if self.rule.rows == "leading" else 1

    def _see_tags(self, grad: Tensor) -> None:
        if grad.numel() == 0:
            return
        if self.tagged is None:
            every_row = self.place in self.plan.layouts.every_row
            lead, n = self._lead(grad.dim()), self.forward.samples
            self.tagged = TaggedRows(grad, lead, n, self.recorder.generator, every_row=every_row)
        else:
            self.tagged.add(grad)

    def _layout(self, grad: Tensor) -> Layout:
        if self.forward.tags is None:
            known = self.plan.layouts.known(self.place)
            if (
                type(known) is BatchDim
                and known.dim < self._lead(grad.dim())
                and grad.shape[known.dim] == self.forward.samples
            ):
                return known
        lead = grad.shape[: self._lead(grad.dim())]
        n, batch_dim = self.forward.samples, self.recorder.options.batch_dim
        dims = [dim for dim, size in enumerate(lead) if size == n]
        candidates = sorted(dims, key=lambda dim: (dim != batch_dim, dim))
        if n == 1:
            # Every row belongs to the only sample.
            rows = torch.zeros(lead.numel(), dtype=torch.long, device=grad.device)
            return BatchDim(candidates[0], measured=True) if candidates else Rows(rows)
        tags, tagged = self.forward.tags, self.tagged
        self.tagged = None
        if tags is not None and tagged is not None and self.forward.distinct:
            layout, numbers = tagged.layout(grad, tags, candidates, self.forward.precision(grad.dtype))
            seen = tagged.sees_every_sample(layout, numbers)
            self.forward.unsettled |= not self.plan.layouts.learn(self.place, layout, numbers, seen)
            return layout
        known = self.plan.layouts.known(self.place)
        if isinstance(known, NoSamples) or (isinstance(known, Rows) and known.sample_of_row.numel() == lead.numel()):
            return known
        if isinstance(known, BatchDim) and known.dim < len(lead) and lead[known.dim] == n:
            return known
        self.forward.unsettled = True
        return BatchDim(candidates[0]) if candidates else NoSamples(mixed=False)

    def _describe(self, grad: Tensor, layout: Layout) -> dict[str, Contribution]:
        inputs = self.kept.read() + self.saved
        if isinstance(layout, BatchDim):
            if layout.dim:
                inputs = tuple(_moved(value, layout.dim) for value in inputs)
                grad = grad.movedim(layout.dim, 0)
            described = self._by_rule(inputs, grad)
            weight, shared, self.shared = described.get("weight"), self.shared, None
            if shared is not None and type(weight) is Outer and shared.serves(weight.inputs, inputs[0]):
                weight.shared_inputs = shared
            return described
        if not isinstance(layout, Rows):
            return {}
        rows = self._lead(grad.dim())
        if rows > 1 or self.rule.rows == "leading":
            inputs = tuple(_flattened(value, rows) for value in inputs)
            grad = grad.reshape(layout.sample_of_row.shape[0], *grad.shape[rows:])
        n = self.forward.samples
        described = self._by_rule(inputs, grad)
        return {name: contribution.regroup(layout.sample_of_row, n) for name, contribution in described.items()}

    def _by_rule(self, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
        if torch.is_grad_enabled():
            with torch.no_grad():
                described = self.rule.describe(self.plan.module, inputs, grad.detach())
        else:
            described = self.rule.describe(self.plan.module, inputs, grad)
        return {
            name: value if isinstance(value, Contribution) else Dense(value.detach())
            for name, value in described.items()
        }


def nothing(samples: int, parameter: Tensor) -> Contribution:
    """What samples add that never reached a layer: a table none of whose rows was read."""
    ids = torch.empty(samples, 0, dtype=torch.long, device=parameter.device)
    return Scatter(ids, parameter.new_empty(samples, 0, parameter[0].numel()), parameter.shape)


def _moved(value: Any, dim: int) -> Any:
    return value.movedim(dim, 0) if isinstance(value, Tensor) and value.dim() > dim else value


def _flattened(value: Any, rows: int) -> Any:
    if isinstance(value, Tensor) and value.dim() >= rows:
        return value.reshape(value.shape[:rows].numel(), *value.shape[rows:])
    return value
