"""Micro-steps into one effective minibatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradscope.closing import Closing, smallest
from gradscope.contributions.precision import squared_norm
from gradscope.contributions.workspace import Workspace
from gradscope.coverage import Coverage
from gradscope.moments.arrival import Arrival
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import MicroStep
from gradscope.trust import Trust
from gradscope.window_sums import (
    dense,
)


class OpenWindow(Closing):
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
        #: Whether what only the newest window keeps is still wanted.
        self.newest = True
        self._ways: list[Sequence[Coverage]] = [()]
        self._measured = [(), ()]
        self.places = {leaf.info.name: leaf.index for leaf in leaves}
        self._dtypes: list[torch.dtype] = []
        self.look_again()
        self.begin()

    def look_again(self) -> None:
        """What is too small to be squared depends on the precision, and parameters may have been converted."""
        dtypes = [leaf.parameter.dtype for leaf in self.leaves]
        if dtypes != self._dtypes:
            self._dtypes, self.least = dtypes, [smallest(leaf) for leaf in self.leaves]

    def begin(self) -> None:
        """Forget everything: the gradients were cleared."""
        self._forget()
        for leaf in self.leaves:
            leaf.version = None

    def _forget(self) -> None:
        self.steps: list[MicroStep] = []
        #: A backward's arrival where that is all that the gradient holds, so that no view need be made of its table.
        self.grad_sq: dict[int, Tensor | Arrival] = {}
        self.grads: dict[int, Tensor] = {}
        self.weighed: dict[int, Tensor] = {}
        self.problems: dict[int, str] = {}
        self.arrived: set[int] = set()

    def close_down(self) -> None:
        """Begin anew with fresh probes."""
        self._forget()
        self.notices = []
        for leaf in self.leaves:
            leaf.version, leaf.baseline, leaf.pending = None, None, False

    def outdate(self) -> None:
        """There is a newer one: what only the newest window keeps is wanted no more, and the next one takes its memory."""
        for grad in self.grads.values():
            self.workspace.give_back(grad)
        self.newest, self.grads = False, {}
        for step in self.steps if self.moments else ():
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
        taken: OpenWindow = object.__new__(OpenWindow)
        taken.__dict__.update(self.__dict__)
        taken.frozen = self._frozen()
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
        leaves, grad_sq, moments = self.leaves, self.grad_sq, self.moments
        for index, arrival in arrivals.items():
            leaf = leaves[index]
            if arrival.stored is None or index in grad_sq or (moments and arrival.copy is None):
                self._note_grad(leaf, arrival)
                continue
            # All that its .grad holds was read there.
            leaf.version, leaf.added = arrival.stored, arrival
            grad_sq[index] = arrival
            if moments and arrival.copy is not None:
                self.grads[index], arrival.copy = arrival.copy, None

    def _note_grad(self, leaf: Leaf, arrival: Arrival) -> None:
        grad, first = leaf.grad, leaf.index not in self.grad_sq
        if grad is None:
            leaf.pending = leaf.sharded
            if not first and not leaf.pending:
                self.problems[leaf.index] = "its .grad is gone after backward (an optimizer that steps inside it?)"
            self.grad_sq[leaf.index] = arrival.squared_norm
            if self.moments and arrival.fresh is not None:
                self.grads[leaf.index] = dense(arrival.fresh)
            return
        leaf.pending = False
        leaf.version, leaf.added = grad._version, arrival.squared_norm
        if first and leaf.hooked and leaf.baseline is None and not self.shared:
            self._compare_stored(leaf, grad.detach(), arrival)
        if leaf.baseline is not None:
            grad = grad.detach() - leaf.baseline
        exact = first and arrival.times == 1 and leaf.baseline is None and grad.dtype == arrival.dtype
        # Not the arrival itself, which may hold a copy of the gradient.
        self.grad_sq[leaf.index] = arrival.squared_norm if exact else squared_norm(grad.detach())
        if self.moments and exact and arrival.copy is not None:
            self.grads[leaf.index], arrival.copy = arrival.copy, None
        elif self.moments:
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
