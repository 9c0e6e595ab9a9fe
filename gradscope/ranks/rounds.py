"""The backwards that average gradients over ranks, as hooks on the model see them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from gradscope.capture.backward import after_backward
from gradscope.capture.hook import Hook
from gradscope.capture.tensors import batch_size, tensors_in
from gradscope.moments.leaf import Leaf
from gradscope.ranks.averaging import Averaging, find_averaging
from gradscope.ranks.roll_call import RollCall

#: Rounds of callbacks that come first at the end of a backward: wrappers queue theirs, and those queue others.
LEVELS = 2

ABSENT = (
    "not all ranks watch this model with the same settings: figures are of this rank's samples alone. Call gradscope.watch on "
    "every rank, before the first backward"
)
LEFT = "a rank has closed its scope: from then on figures are of this rank's samples alone"


class Rounds:
    """Calls back at the end of each such backward: there, and nowhere else, is it certain that every rank comes by.

    Args:
        model: the watched model.
        roll: who takes part.
        look: gives the model's parameters, as a forward begins.
        leaves: gives them at any time.
        meet: what to call.
        batch_dim: where samples lie in the model's inputs.

    Attributes:
        averaging: what averages gradients; None where nothing was seen.
        apart: why ranks are not merged any more, for good; empty where they are.
        count: backwards that averaged gradients.
        due: the number of the next after which ranks meet.
        averaged: whether one came since ``closed``.
        reached: parameters that the backward under way has reached.
        empty: whether the last forward had no samples at all, as on a rank that has run out of them.
        seconds: spent here.
    """

    def __init__(
        self, model: Module, roll: RollCall, look: Callable[[], Sequence[Leaf]], leaves: Callable[[], Sequence[Leaf]],
        meet: Callable[[], None], *, batch_dim: int,
    ) -> None:  # fmt: skip
        self._model, self._roll, self._look, self._leaves, self._meet = model, roll, look, leaves, meet
        self._batch_dim = batch_dim
        self._task = -1
        self._before: list[tuple[int, int]] = []
        self._seen = False
        self.averaging: Averaging | None = None
        self.apart = ""
        self.count, self.due = 0, 1
        self.averaged = self.empty = False
        self.reached: set[int] = set()
        self.seconds = 0.0
        before, after = Hook(self._safely(self._before_model), self), Hook(self._safely(self._after_model), self)
        self._handles: list[Any] = [
            model.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True),
        ]

    def _safely(self, function: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any) -> None:
            started = time.perf_counter()
            try:
                function(*args)
            except Exception as error:  # the user's training must go on whatever fails here
                self.fail(f"gradscope failed: {type(error).__name__}: {str(error)[:300]}")
            finally:
                self.seconds += time.perf_counter() - started

        return run

    def fail(self, text: str) -> None:
        """Take part no more, and have the others know before they wait."""
        self.apart = self.apart or text
        try:
            self._roll.leave()
        except (RuntimeError, ValueError):
            # The store is gone, and those with whom it was shared.
            return

    def leave(self) -> None:
        """Take the hooks off, and tell the others."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.fail(LEFT)

    @property
    def averages(self) -> bool:
        """Whether the backward of the forward seen last averages gradients over ranks."""
        return self._seen and self.averaging is not None and self.averaging.now

    def _before_model(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        known = self.averaging.peers if self.averaging is not None else None
        found = find_averaging(self._model, self._look(), known)
        self._seen = found is not None
        self.averaging = found or self.averaging
        if found is not None:
            self.apart = self.apart or found.why
            self._roll.answer(found.peers.collectives())
        self.empty = batch_size(args, kwargs, self._batch_dim) == 0

    def _after_model(self, module: Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self.averages or self.apart or not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        hook = Hook(self._safely(self._begins), self)
        for tensor in tensors_in(output):
            if tensor.requires_grad and tensor.grad_fn is not None:
                tensor.register_hook(hook)

    def _begins(self, grad: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._before = task, self._stored()
            # One round after the recorder has seen the reduced gradients.
            after_backward(self._safely(self._ends), LEVELS + 1)

    def _ends(self) -> None:
        averaging = self.averaging
        reached, self.reached = self.reached, set()
        if averaging is None or self.apart or self._stored() == self._before:
            # autograd.grad adds nothing, and averages nothing.
            return
        if reached and not averaging.ends(reached):
            return
        self.averaged = True
        if not self.count:
            peers = averaging.peers
            if peers.world > 1 and not self._roll.complete(peers.members(), peers.collectives()):
                self.apart = ABSENT
        elif self._roll.left():
            self.apart = LEFT
        self.count += 1
        if not self.apart and self.count >= self.due:
            self._meet()

    def _stored(self) -> list[tuple[int, int]]:
        """What changes when something is added to a gradient."""
        found = []
        for leaf in self._leaves():
            grad = leaf.grad
            found.append((0, -1) if grad is None else (id(leaf.parameter.grad), grad._version))
        return found
