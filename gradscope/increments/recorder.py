"""Everything that hangs on a model whose layers are left alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module

from gradscope.capture.backward import TWO_FORWARDS, Backward
from gradscope.capture.forward import Forward
from gradscope.capture.hook import Hook
from gradscope.capture.options import Options
from gradscope.increments.increment import Increment
from gradscope.increments.leaf_watch import SEVERAL, LeafWatch
from gradscope.increments.passes import Passes
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import MicroStep

SIZE_UNSEEN = "no input of the model has a batch dimension, so that it is not known how many samples a micro-step has"


class IncrementRecorder:
    """Two hooks on the model and two on each parameter; none on layers, and no walk over the graph.

    Args:
        model: the watched model.
        leaves: its parameters.
        options: what the user asked for.
        deliver: called after each backward, with the micro-steps that began in it.
        on_forward: called when a forward with a graph begins.
    """

    def __init__(
        self, model: Module, leaves: list[Leaf], options: Options,
        deliver: Callable[[Backward, list[MicroStep]], None], on_forward: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.model = model
        self.leaves = leaves
        self.options = options
        self.deliver = deliver
        self.forwarding = Passes(self, on_forward)
        self.backward: Backward | None = None
        self.failures: list[str] = []
        self.seconds = 0.0
        self.same_samples: bool | None = None
        self.guarding = self.calibrated = False
        self._watches: list[LeafWatch] = []
        self._after_model: Any = None
        self._presence: Any = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Hang hooks on the model and its parameters, behind those that others have hung there since."""
        if self._presence is None:
            hook = Hook(self.shielded(self.forwarding.before_model), self)
            self._presence = self.model.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
        if self._after_model is None:
            hook = Hook(self.shielded(self.forwarding.after_model), self)
            self._after_model = self.model.register_forward_hook(hook, with_kwargs=True)
            self._watches = [LeafWatch(self, leaf) for leaf in self.leaves if leaf.wanted]
            for watch in self._watches:
                watch.attach()
        for watch in self._watches:
            if not watch.last:
                watch.detach()
                watch.attach()

    def detach(self) -> None:
        """Take the hooks off, but for one on the model that shows that it is watched."""
        if self._after_model is not None:
            self._after_model.remove()
            self._after_model = None
        for watch in self._watches:
            watch.detach()
        self._watches = []
        self.backward = None

    @property
    def attached(self) -> bool:
        """Whether hooks hang: not in windows that ``every`` skips."""
        return self._after_model is not None

    def leave(self) -> None:
        """Take all hooks off."""
        self.detach()
        if self._presence is not None:
            self._presence.remove()
            self._presence = None

    def shielded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time counted and its failures kept from the user's run."""

        def run(*args: Any) -> None:
            started = time.perf_counter()
            try:
                function(*args)
            except Exception as error:  # a failure of ours must never end the user's backward
                self.note(error)
            self.seconds += time.perf_counter() - started

        return run

    def note(self, error: Exception) -> None:
        """A failure of ours, for the report."""
        self.failures.append(f"{type(error).__name__}: {str(error).strip()[:300]}")

    # -- backward -----------------------------------------------------------------------------------------------------

    def enter(self) -> Backward:
        """The backward that is running; its first hook makes the record."""
        if self.backward is None:
            self.backward = Backward(torch._C._current_graph_task_id())
            torch.autograd.Variable._execution_engine.queue_callback(self.shielded(self._after_backward))
        return self.backward

    def _after_backward(self) -> None:
        backward, self.backward = self.backward, None
        if backward is None or not backward.arrivals:
            # autograd.grad adds nothing.
            return
        unhooked = self.forwarding.unhooked
        if not backward.forwards and unhooked is not None:
            backward.reach(unhooked)
        began = [forward for forward in backward.forwards if forward.step is None]
        if began:
            step = self._new_step(began)
            for index, arrival in backward.arrivals.items():
                self._note(step, index, arrival)
            self.deliver(backward, [step])
            return
        for forward in backward.forwards[:1]:
            self._add_again(forward, backward)
        self.deliver(backward, [])

    def _new_step(self, began: list[Forward]) -> MicroStep:
        sizes = [forward.samples for forward in began]
        samples = sizes[0] if self.same_samples is True else sum(sizes)
        step = MicroStep(samples, moments=False, chosen=None, budget=None)
        for forward in began:
            forward.step = step
        problem = SIZE_UNSEEN if 0 in sizes else ""
        if len(began) > 1 and self.same_samples is None:
            problem = TWO_FORWARDS
        for leaf in self.leaves if problem else ():
            step.withhold(leaf, problem)
        return step

    def _note(self, step: MicroStep, index: int, arrival: Any) -> None:
        leaf = self.leaves[index]
        step.of(leaf).arrival = arrival
        if isinstance(arrival, Increment) and arrival.problem:
            step.withhold(leaf, arrival.problem)

    def _add_again(self, forward: Forward, backward: Backward) -> None:
        """A further backward of the same forward: its increments join those that came before."""
        step = forward.step
        for index, arrival in backward.arrivals.items() if step is not None else ():
            leaf = self.leaves[index]
            if step is not None and step.of(leaf).arrival is not None:
                step.withhold(leaf, SEVERAL)
            elif step is not None:
                self._note(step, index, arrival)

    def finish_kept(self) -> None:
        """Nothing waits for a further backward here."""
