"""Micro-steps into one effective minibatch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradscope.contributions.precision import squared_norm
from gradscope.contributions.workspace import Workspace
from gradscope.coverage import STATUSES, Coverage
from gradscope.judgement import Judged
from gradscope.moments.arrival import Arrival
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import MicroStep, coarsest
from gradscope.trust import Trust
from gradscope.verdicts import verdicts
from gradscope.window import ParameterSums, Window
from gradscope.window_sums import AdamState, Parts, bring_norms, dense, parameter_sums, shares, weighed_by_adam

#: Of a parameter that is split over ranks.
NEVER_WHOLE = (
    "no layer was seen holding all of it: it is split over ranks while its layer runs (tensor parallelism), or not used"
)
NOT_ITS_TURN = "it was frozen in this window, which is another optimizer's"


class OpenWindow:
    """The effective minibatch that is being filled.

    Args:
        leaves: all parameters.
        moments: whether elementwise moments are wanted.
        workspace: memory for them.

    Attributes:
        shared: ``.grad`` after a backward is that of several ranks, not what arrived here.
        by_parts: only the sizes of whole micro-steps are known, nothing of their samples.
    """

    def __init__(self, leaves: Sequence[Leaf], *, moments: bool, workspace: Workspace | None = None) -> None:
        self.leaves = leaves
        self.workspace = workspace or Workspace()
        self.moments = moments
        self.shared = False
        self.by_parts = False
        #: Parameters that asked for no gradient when the window ended; None while it is open.
        self.frozen: frozenset[int] | None = None
        self.notices: list[str] = []
        self.trust = Trust()
        self.begin()

    def begin(self) -> None:
        """Forget everything: an optimizer has stepped, or the gradients were cleared."""
        self.steps: list[MicroStep] = []
        self.grad_sq: dict[int, Tensor] = {}
        self.grads: dict[int, Tensor] = {}
        self.weighed: dict[int, Tensor] = {}
        self.problems: dict[int, str] = {}
        self.arrived: set[int] = set()
        for leaf in self.leaves:
            leaf.version = None

    def close_down(self) -> None:
        """Begin anew with fresh probes."""
        self.begin()
        self.notices = []
        for leaf in self.leaves:
            leaf.open_window()

    def weigh(self, adam: Mapping[int, AdamState]) -> None:
        """Note the elementwise squares as the optimizer weighs them now; its state goes on.

        Args:
            adam: what the optimizer knows, by parameter index; may be empty.
        """
        for index, state in adam.items():
            if index in self.grads and index not in self.weighed:
                found = weighed_by_adam(self.grads[index], self.steps, index, state)
                if found is not None:
                    self.weighed[index] = found

    def forget_elementwise(self) -> None:
        """Only the newest window's elementwise figures are kept; the next one's take their memory."""
        for grad in self.grads.values():
            self.workspace.give_back(grad)
        self.grads = {}
        for step in self.steps:
            for record in step.measured.values():
                if record.second_moment is not None:
                    self.workspace.give_back(record.second_moment)
                record.second_moment = None

    def taken(self) -> OpenWindow:
        """What was filled, to be closed later; this one may begin anew."""
        for step in self.steps:
            for record in step.measured.values() if step.samples > 1 else ():
                if record.arrival is not None:
                    record.arrival.fresh = None
        taken = copy.copy(self)
        taken.frozen = frozenset(leaf.index for leaf in self.leaves if not leaf.parameter.requires_grad)
        return taken

    @property
    def nbytes(self) -> int:
        """About as many bytes as it holds while it waits to be closed."""
        return sum(32 * step.samples * len(step.measured) for step in self.steps)

    # -- filling ------------------------------------------------------------------------------------------------------

    def add(
        self,
        arrivals: Mapping[int, Arrival],
        restarted: set[int],
        touched: set[int],
        steps: Sequence[MicroStep],
        orphan: bool,
    ) -> None:
        """One backward is over.

        Args:
            arrivals: what it added to the parameters.
            restarted: parameters whose ``.grad`` was None before it.
            touched: parameters whose ``.grad`` was changed by someone else since the last backward.
            steps: the micro-steps that it ended.
            orphan: whether it reached no forward of the model at all.
        """
        again = restarted & self.arrived
        if again and again == self.arrived & set(arrivals):
            # A step that the GradScaler skipped, or zero_grad: what came before is in no gradient any more.
            lost = len(self.steps)
            self.begin()
            self.notices.append(
                f"gradients were cleared before the optimizer stepped: {lost} micro-step{'s' * (lost != 1)} left out"
            )
        else:
            for index in again:
                self.problems[index] = "its .grad was cleared inside the window, while others were kept"
        for index in touched - again:
            self.problems[index] = (
                "its .grad was changed between micro-steps (clipped or unscaled inside the window?), so that it is no "
                "longer the sum of what the samples added"
            )
        if orphan:
            for index in arrivals:
                self.problems[index] = "a backward that belongs to no sample added to it (a penalty on the weights?)"
        # A backward for the inputs alone (saliency) reaches no parameter: its samples are in no gradient.
        self.steps.extend(step for step in steps if step.arrived)
        self.arrived |= set(arrivals)
        for index, arrival in arrivals.items():
            self._note_grad(self.leaves[index], arrival)

    def _note_grad(self, leaf: Leaf, arrival: Arrival) -> None:
        grad = leaf.grad
        first = leaf.index not in self.grad_sq
        leaf.pending = grad is None and leaf.sharded
        if grad is None:
            if not first and not leaf.pending:
                self.problems[leaf.index] = "its .grad is gone after backward (an optimizer that steps inside it?)"
            self.grad_sq[leaf.index] = arrival.squared_norm
            if self.moments and arrival.fresh is not None:
                self.grads[leaf.index] = dense(arrival.fresh)
            return
        leaf.version, leaf.added = grad._version, arrival.squared_norm
        if first and leaf.hooked and leaf.baseline is None and not self.shared:
            self._compare_stored(leaf, grad.detach(), arrival)
        if leaf.baseline is not None:
            grad = grad.detach() - leaf.baseline
        exact = first and arrival.times == 1 and leaf.baseline is None and grad.dtype == arrival.dtype
        self.grad_sq[leaf.index] = arrival.squared_norm if exact else squared_norm(grad.detach())
        if self.moments:
            whole = dense(grad.detach())
            held = self.grads.get(leaf.index)
            held = self.workspace.lend(whole.shape, whole) if held is None or held.shape != whole.shape else held
            self.grads[leaf.index] = held.copy_(whole)

    def _compare_stored(self, leaf: Leaf, grad: Tensor, arrival: Arrival) -> None:
        """Notice a hook of the user's own that changes what is stored."""
        if leaf.probe is None:
            return
        stored = leaf.probe.of(grad)
        rounding = 64 * torch.finfo(arrival.dtype).eps
        off = (stored - arrival.probe).abs().square().sum()
        if bool(off > rounding * rounding * (arrival.squared_norm + arrival.probe.abs().square().sum())):
            self.problems[leaf.index] = (
                "a hook of your own on this parameter changes its gradient before it is stored (a mask?), so that .grad is "
                "not the sum of what the samples added"
            )

    # -- closing ------------------------------------------------------------------------------------------------------

    def close(self, index: int, *, scale: float, adam: Mapping[int, AdamState]) -> Window:
        """The window, from all that was added.

        Args:
            index: its number.
            scale: what the loss was multiplied with (GradScaler); divided out of every figure.
            adam: what the optimizer knows, by parameter index; may be empty.
        """
        for step in self.steps:
            step.settle()
        self.weigh(adam)
        share, v2, ids = shares(self.steps)
        judged, grad_sq = verdicts(self.steps, self.grad_sq)
        bring_norms(self.steps)
        guarded = {i for step in self.steps for i, record in step.measured.items() if record.built is not None}
        self.trust.remember(index, judged, guarded)
        coverage: dict[str, Coverage] = {}
        sums: dict[str, ParameterSums] = {}
        for leaf in self.leaves:
            found = self._cover(leaf, judged.get(leaf.index))
            coverage[leaf.info.name] = found
            leaf.mismatched = found.status == "mismatch"
            i = leaf.index
            if found.measured and i in grad_sq:
                parts = Parts(i, self.steps, judged[i], grad_sq[i], self.grads.get(i), scale, v2)
                by_sample = found.status in ("exact", "second pass")
                sums[leaf.info.name] = parameter_sums(parts, by_sample=by_sample, weighed=self.weighed.get(i))
        return Window(
            index=index,
            samples=share.numel(),
            micro_steps=len(self.steps),
            weight_sq_sum=v2,
            parameters=sums,
            coverage=coverage,
            weights=share,
            ids=ids,
            held_bytes=max((step.peak_bytes for step in self.steps), default=0),
            notices=tuple(dict.fromkeys([*self.notices, *(n for step in self.steps for n in step.notices)])),
        )

    def _cover(self, leaf: Leaf, parts: list[Judged | None] | None) -> Coverage:
        if leaf.ignored:
            return Coverage("not measured", reason=leaf.ignored)
        if leaf.index in self.frozen if self.frozen is not None else not leaf.parameter.requires_grad:
            return Coverage("no gradient", reason=NOT_ITS_TURN) if leaf.in_turn else Coverage("frozen")
        if leaf.index not in self.arrived:
            unseen = leaf.sharded and leaf.live is leaf.parameter
            return Coverage("not measured", reason=NEVER_WHOLE) if unseen else Coverage("no gradient")
        if leaf.index in self.problems:
            return Coverage("not measured", reason=self.problems[leaf.index])
        known = [part.coverage for part in parts or () if part is not None]
        if not known:
            return Coverage("not measured", reason="its gradient came without a forward that was seen")
        worst = known[0] if len(known) == 1 else max(known, key=lambda one: STATUSES.index(one.status))
        if worst.measured and worst.status != "estimated" and leaf.index in self.trust.distrusted:
            return Coverage("mismatch", worst.rule, self.trust.distrusted[leaf.index], worst.error)
        errors = [one.error for one in known if one.error == one.error]
        if errors and (worst.measured or not any(part.by_guard for part in parts or () if part is not None)):
            dtype = coarsest(*{step.measured[leaf.index].dtype for step in self.steps if leaf.index in step.measured})
            text = self.trust.lasting(leaf.index, errors, dtype)
            if text and worst.measured:
                return Coverage("mismatch", worst.rule, text, max(errors))
        if len(known) == 1:
            return worst
        reason = next((one.reason for one in known if one.status == worst.status and one.reason), worst.reason)
        return Coverage(worst.status, worst.rule, reason, max(errors, default=worst.error))
