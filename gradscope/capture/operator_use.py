"""One place where a parameter without a layer of its own meets the samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gradscope.capture.call import Call
from gradscope.capture.forward import Forward
from gradscope.capture.graph_kind import foreign, upstream
from gradscope.capture.layout import BatchDim, Layout, NoSamples, Rows
from gradscope.capture.meeting import Meeting
from gradscope.capture.negligible import largest, negligible_below
from gradscope.capture.owners import Owners, owners_along
from gradscope.capture.saved import UnreadableError, readable, runs_once
from gradscope.capture.tagged_rows import TaggedRows
from gradscope.capture.tagging import user_hooks_lifted
from gradscope.contributions import Contribution, Dense, Outer
from gradscope.moments.leaf import Leaf
from gradscope.operators.broadcast import along_dimensions

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder

#: Largest tensor of per-sample gradients that is taken back through operators without samples, in elements.
LARGEST = 1 << 26


class OperatorUse:
    """Pre-hook of the operator's node.

    Args:
        recorder: where figures go.
        forward: the model's call.
        meeting: where.
        target: the parameter; or the call of a layer whose output has no batch dimension, with the node that made it.
        key: what tells this use from others.
    """

    __slots__ = ("forward", "key", "made_by", "meeting", "node_name", "recorder", "tagged", "target")

    def __init__(
        self, recorder: Recorder, forward: Forward, meeting: Meeting, target: Leaf | Call, made_by: GradientEdge | None,
        key: tuple[object, ...],
    ) -> None:  # fmt: skip
        self.recorder = recorder
        self.forward = forward
        # Without its node: a hook that holds its own node would keep the graph for ever. What it holds lies upstream.
        self.meeting = meeting.without_node()
        self.target = target
        self.made_by = made_by
        self.key = key
        self.tagged: TaggedRows | None = None

    @property
    def leaves(self) -> dict[str, Leaf]:
        """The parameters that this use is part of, by the name that descriptions use."""
        return {"": self.target} if isinstance(self.target, Leaf) else self.target.wanted()

    def on_node(self, grads: tuple[Tensor | None, ...]) -> None:
        """The gradient of the operator's output is here."""
        grad, recorder = grads[0], self.recorder
        if grad is None:
            return
        if recorder.tagging is not None:
            if recorder.tagging is self.forward:
                self._see_tags(self._rows(grad))
            return
        if not recorder.enter(self.forward):
            return
        try:
            self._measure(grad)
        except (RuntimeError, ValueError, IndexError, UnreadableError) as error:
            self._withhold(f"the operator {self.meeting.name!r} that uses it: {str(error).splitlines()[0][:200]}")

    def _rows(self, grad: Tensor) -> Tensor:
        operator = self.meeting.operator
        rows = along_dimensions if operator is None else operator.rows
        return rows(grad, self.meeting.operand, self.meeting.dims)

    def _see_tags(self, rows: Tensor) -> None:
        if self.tagged is None:
            lead, n = self.meeting.lead, self.forward.samples
            every_row = (*self.key, lead, n) in self.recorder.layouts.every_row
            self.tagged = TaggedRows(rows, len(lead), n, self.recorder.generator, every_row=every_row)
        else:
            self.tagged.add(rows)

    def _measure(self, grad: Tensor) -> None:
        layout, place = self._layout(self._rows(grad)), (*self.key, self.meeting.lead, self.forward.samples)
        if not isinstance(layout, NoSamples):
            described = self._described(grad, layout)
            assumed = self.forward.ambiguous or (isinstance(layout, BatchDim) and not layout.measured)
            outgrown = self.recorder.layouts.outgrown(place, partial(largest, described))
            self.forward.unsettled |= outgrown
            self._deliver(described, grad.dtype, assumed or outgrown)
            return
        guess = self._guess()
        if layout.settled and isinstance(guess, BatchDim):
            described = self._described(grad, guess)
            limit = negligible_below(self.forward, self.leaves, described)
            if limit is not None:
                self.recorder.layouts.remember_negligible(place, BatchDim(guess.dim, measured=True), limit)
                self._deliver(described, grad.dtype, self.forward.ambiguous)
                return
        if layout.settled and self.recorder.inner:
            # The next forward looks further on.
            self.forward.unsettled = True
            known = self.recorder.layouts.rejected.setdefault((self.key[1], self.forward.graph), set())
            known.add(self.meeting.place)
        reason = f"where it meets the samples ({self.meeting.name}), rows do not belong to single samples"
        # Either samples interact, or they are met further on: until that is known, an estimate might mean nothing.
        self._withhold(reason, spoiled=self.recorder.inner)

    def _described(self, grad: Tensor, layout: BatchDim | Rows) -> dict[str, Contribution]:
        node: Any = torch._C._current_autograd_node()
        dim, owners = self._rows_along(layout)
        with torch.no_grad(), readable(node, packs=self.forward.packs) as put_back:
            contribution = self._shares(node, grad.detach(), dim, owners, put_back)
        return self._at_target(contribution)

    def _guess(self) -> Layout:
        candidates = [k for k, size in enumerate(self.meeting.lead) if size == self.forward.samples]
        return BatchDim(candidates[0]) if candidates else NoSamples(mixed=True)

    def _shares(
        self, node: Any, grad: Tensor, dim: int, owners: Owners | None, put_back: Callable[[], None]
    ) -> Contribution:
        """Each sample's gradient of the operand."""
        meeting = self.meeting
        if meeting.operator is not None:
            described = meeting.operator.describe(node, meeting.operand, grad, meeting.shape, dim)
            return (
                described if owners is None else described.regroup(owners.of(described.samples), self.forward.samples)
            )
        # A node that nobody described is run once for each sample's rows of the gradient alone.
        rows, found = grad.movedim(dim, 0), []
        owner = torch.arange(rows.shape[0], device=grad.device) if owners is None else owners.sample_of_row
        # Nodes of the user's own functions are run by another name.
        run = node if callable(node) else node.apply
        for i in range(self.forward.samples):
            own = (owner == i).reshape(-1, *[1] * (grad.dim() - 1))
            given = run(torch.where(own, rows, torch.zeros_like(rows)).movedim(0, dim))
            share = given[meeting.operand] if isinstance(given, tuple) else given
            # autograd's engine sums what was broadcast; a node does not.
            found.append(share.sum_to_size(meeting.shape))
            put_back()
        return Dense(torch.stack(found))

    def _rows_along(self, layout: BatchDim | Rows) -> tuple[int, Owners | None]:
        """The one dimension of the output that tells samples apart, and whose row is whose along it."""
        if isinstance(layout, BatchDim):
            return self.meeting.dims[layout.dim], None
        lead, dims = tuple(self.meeting.lead), tuple(self.meeting.dims)
        if (lead, dims) not in layout.known:
            layout.known[lead, dims] = owners_along(layout.sample_of_row.reshape(lead), dims)
        found: tuple[int, Owners] = layout.known[lead, dims]
        return found

    def _layout(self, rows: Tensor) -> Layout:
        lead, n, memory = self.meeting.lead, self.forward.samples, self.recorder.layouts
        candidates = [k for k, size in enumerate(lead) if size == n]
        tags, tagged = self.forward.tags, self.tagged
        self.tagged = None
        if tags is not None and tagged is not None and self.forward.distinct:
            layout, numbers = tagged.layout(rows, tags, candidates, self.forward.precision(rows.dtype))
            seen = tagged.sees_every_sample(layout, numbers)
            self.forward.unsettled |= not memory.learn((*self.key, lead, n), layout, numbers, seen)
            return layout
        known = memory.known((*self.key, lead, n))
        self.forward.unsettled |= known is None
        return self._guess() if known is None else known

    def _at_target(self, contribution: Contribution) -> dict[str, Contribution]:
        """Contributions to the operand as contributions to the parameters."""
        meeting = self.meeting
        if isinstance(self.target, Leaf):
            if meeting.source is None:
                same = contribution.shape == self.target.parameter.shape
                return {"": contribution if same else Dense(contribution.dense().reshape(-1, *meeting.shape))}
            if meeting.transposed and isinstance(contribution, Outer):
                # W enters as its transpose: the factors change places.
                return {"": Outer(contribution.grads, contribution.inputs, torch.Size(reversed(meeting.shape)))}
            return {"": Dense(self._pulled_back(contribution, self.target.live))}
        dense = contribution.dense().reshape(-1, *meeting.shape)
        if meeting.source is not None and self.made_by is not None:
            dense = self._pulled_back(contribution, self.made_by)
        return self.target.describe_unbatched(dense)

    def _pulled_back(self, contribution: Contribution, to: Any) -> Tensor:
        """Each sample's gradient of the operand, taken back through operators that hold no samples."""
        size = to.numel() if isinstance(to, Tensor) else contribution.shape.numel()
        above = set(upstream(self.meeting.source))
        if runs_once(above) or (foreign(above) and not self.recorder.options.second_pass):
            raise ValueError("what lies between can be run backward only once")
        if contribution.samples * size > LARGEST:
            raise ValueError("its gradients of all samples would not fit in memory on the way back")
        recorder, leaves = self.recorder, list(self.leaves.values())
        edge = GradientEdge(self.meeting.source, self.meeting.source_nr)
        recorder.tagging = _NOBODY
        try:
            with user_hooks_lifted(leaves):
                dense = contribution.dense().reshape(-1, *self.meeting.shape)
                return _pull_all(edge, to, dense)
        finally:
            recorder.tagging = None

    def _deliver(self, described: dict[str, Contribution], dtype: torch.dtype, assumed: bool) -> None:
        step = self.forward.step
        for name, leaf in self.leaves.items():
            if step is None or name not in described:
                continue
            operator, again = self.meeting.name, self.meeting.operator is None
            rule = operator if isinstance(self.target, Leaf) else f"{self.target.rule.name} + {operator}"
            uses = self.forward.uses.get(leaf.index, 1)
            last = not self.recorder.more_backwards()
            step.add(leaf, described[name], rule, uses=uses, last=last, dtype=dtype, second_pass=again)
            step.of(leaf).assumed |= assumed

    def _withhold(self, reason: str, *, spoiled: bool = False) -> None:
        for leaf in self.leaves.values():
            if self.forward.step is not None:
                self.forward.step.withhold(leaf, reason, spoiled=spoiled)


#: While gradients are pulled back, every hook of ours looks away.
_NOBODY = Forward(0, root=False)


def _pull_all(edge: GradientEdge, to: Any, dense: Tensor) -> Tensor:
    try:
        return torch.autograd.grad([edge], [to], [dense], retain_graph=True, is_grads_batched=True)[0]
    except RuntimeError:
        # Not every operator can be batched; one sample at a time always works.
        rows = [torch.autograd.grad([edge], [to], [one], retain_graph=True)[0] for one in dense]
        return torch.stack(rows)
