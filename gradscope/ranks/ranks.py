"""The other ranks, as a session sees them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

from gradscope.accumulator import OpenWindow
from gradscope.capture.backward import after_backward
from gradscope.capture.hook import Hook
from gradscope.capture.tensors import batch_size, tensors_in
from gradscope.moments.leaf import Leaf
from gradscope.ranks.averaging import Averaging, find_averaging
from gradscope.ranks.exchange import Exchange
from gradscope.ranks.merged import Merged
from gradscope.ranks.numbers import Head
from gradscope.ranks.roll_call import RollCall
from gradscope.ranks.share import Share, share_of
from gradscope.window import ParameterInfo, Window
from gradscope.window_sums import AdamState

#: Rounds of callbacks that come first at the end of a backward: wrappers queue theirs, and those queue others.
LEVELS = 2

UNWRAPPED = (
    "torch.distributed is in use, and nothing that averages gradients was seen around the model "
    "(DistributedDataParallel, fully_shard): figures are of this rank's samples alone"
)
ABSENT = (
    "not all ranks watch this model with the same settings: figures are of this rank's samples alone. Call gradscope.watch on "
    "every rank, before the first backward"
)
LEFT = "a rank has closed its scope: from then on figures are of this rank's samples alone"
NOT_AVERAGED = (
    "no backward of this window averaged the gradients of ranks (no_sync around all of them, or the model inside the wrapper "
    "called directly?): figures are of this rank's samples, and so was its update"
)
AFTERWARDS = (
    "a backward came after the last one that averaged the gradients of ranks (no_sync around the last micro-step?), so that "
    "ranks step with different gradients"
)
GONE = "ranks are not merged, and the gradient of this rank's samples alone is nowhere to be seen: {}"


class Ranks:
    """Merges this rank's windows with those of the others.

    All collectives of gradscope happen at the end of a backward that has averaged gradients: there, and nowhere else, is it
    certain that every rank comes by, whatever its own data, its own failures or its own idea of when to step.

    Args:
        model: the watched model.
        settings: what all ranks must have in common.
        leaves: gives the model's parameters.
        merge: called at the end of such a backward.
        gather: whether samples' norms of all ranks are wanted on each.
    """

    def __init__(
        self, model: Module, settings: Iterable[object], leaves: Callable[[], Sequence[Leaf]],
        merge: Callable[[], None], *, parameters: Sequence[ParameterInfo], gather: bool, batch_dim: int,
    ) -> None:  # fmt: skip
        self._model, self._leaves, self._merge = model, leaves, merge
        self._parameters, self._gather, self._batch_dim = list(parameters), gather, batch_dim
        self._roll = RollCall(settings)
        self._averaging: Averaging | None = None
        self._exchange: Exchange | None = None
        self._apart = ""
        self._task = -1
        self._before: list[tuple[int, int]] = []
        self._seen = self._averaged = False
        self._count, self._due = 0, 1
        self._merged: tuple[Merged, int] | None = None
        #: Parameters that the backward under way has reached.
        self.reached: set[int] = set()
        #: Whether the last forward had no samples at all, as a rank that has run out of them may.
        self.empty = False
        self.seconds = 0.0
        before, after = Hook(self._safely(self._before_model), self), Hook(self._safely(self._after_model), self)
        self._handles: list[Any] = [
            model.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True),
        ]

    def _safely(self, function: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any) -> None:
            try:
                function(*args)
            except Exception as error:  # the user's forward must go on whatever fails here
                self._fail(f"gradscope failed: {type(error).__name__}: {str(error)[:300]}")

        return run

    def _fail(self, text: str) -> None:
        """Take part no more, and have the others know before they wait."""
        self._apart = self._apart or text
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
        self._fail(LEFT)

    # -- a forward, a backward ----------------------------------------------------------------------------------------

    @property
    def averaging(self) -> Averaging | None:
        """What averages the gradients of the forward that is under way."""
        return self._averaging

    @property
    def averages(self) -> bool:
        """Whether the backward of the forward seen last averages gradients over ranks."""
        return self._seen and self._averaging is not None and self._averaging.now

    @property
    def apart(self) -> bool:
        """Whether ranks are not merged, for good."""
        return bool(self._apart)

    def _before_model(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        known = self._averaging.peers if self._averaging is not None else None
        found = find_averaging(self._model, self._leaves(), known)
        self._seen = found is not None
        self._averaging = found or self._averaging
        if found is not None and found.why and not self._apart:
            self._apart = found.why
        if found is not None:
            self._roll.answer(found.peers.collectives())
        self.empty = batch_size(args, kwargs, self._batch_dim) == 0

    def _after_model(self, module: Module, args: Any, kwargs: Any, output: Any) -> None:
        averaging = self._averaging
        if not self._seen or averaging is None or not averaging.now or self._apart or not torch.is_grad_enabled():
            return
        if torch._C._current_graph_task_id() != -1:
            return
        hook = Hook(self._safely(self._begins), self)
        for tensor in tensors_in(output):
            if tensor.requires_grad and tensor.grad_fn is not None:
                tensor.register_hook(hook)

    def _begins(self, grad: Tensor) -> None:
        task = torch._C._current_graph_task_id()
        if task == self._task:
            return
        self._task = task
        self._before = self._stored()
        # One round after the recorder has seen the reduced gradients.
        after_backward(self._safely(self._ends), LEVELS + 1)

    def _ends(self) -> None:
        started = time.perf_counter()
        averaging = self._averaging
        reached, self.reached = self.reached, set()
        if averaging is None or self._apart or self._stored() == self._before:
            # autograd.grad adds nothing, and averages nothing.
            return
        if reached and not averaging.ends(reached):
            return
        self._averaged = True
        if self._exchange is None:
            self._begin(averaging)
        elif self._roll.left():
            self._apart = LEFT
        self._count += 1
        if not self._apart and self._count >= self._due:
            self._merge()
        self.seconds += time.perf_counter() - started

    def _stored(self) -> list[tuple[int, int]]:
        """What changes when something is added to a gradient."""
        grads = [leaf.grad for leaf in self._leaves()]
        return [
            (id(leaf.parameter.grad), -1 if grad is None else grad._version)
            for leaf, grad in zip(self._leaves(), grads, strict=True)
        ]

    def _begin(self, averaging: Averaging) -> None:
        peers = averaging.peers
        if peers.world > 1 and not self._roll.complete(peers.members(), peers.collectives()):
            self._apart = ABSENT
        self._exchange = Exchange(peers, self._parameters, one_copy=averaging.one_copy, gather=self._gather)

    # -- a window -----------------------------------------------------------------------------------------------------

    def exchange(self, opened: OpenWindow, head: Head, local: Callable[[], Window], *, measuring: bool) -> None:
        """Tell the other ranks what this one has, and learn what they have.

        Args:
            opened: the window so far.
            head: index, ahead and directions.
            local: closes the window as if there were no others.
            measuring: whether it is one that ``every`` measures.
        """
        exchange = self._exchange
        if exchange is None:
            return

        def build() -> Share:
            return share_of(opened, local(), exchange.names, head) if measuring else exchange.nothing(head)

        try:
            merged = exchange.merge(build, head, by_parts=opened.by_parts)
        except RuntimeError as error:  # a rank is gone: the user's own collective fails next, with the user's own error
            self._fail(f"ranks could not be merged any more: {str(error).strip().splitlines()[0][:200]}")
            return
        self._due = self._count + exchange.wait
        self._merged = None if merged is None else (merged, len(opened.steps))

    @property
    def pending(self) -> bool:
        """Whether ranks have told each other of the open window."""
        return self._merged is not None

    def close(self, opened: OpenWindow, index: int, *, scale: float, adam: Mapping[int, AdamState]) -> Window:
        """The window of all ranks where they were merged, else of this one; what stands in the way is said."""
        merged, self._merged = self._merged, None
        averaged, self._averaged = self._averaged, False
        names = {leaf.index: leaf.info.name for leaf in opened.leaves}
        if merged is not None and merged[1] == len(opened.steps) and not self._apart:
            return merged[0].window(
                index,
                scale=scale,
                problems={names[i]: text for i, text in opened.problems.items()},
                adam={names[i]: state for i, state in adam.items()},
                late=[notice for notice in opened.notices if notice not in merged[0].share.words.values()],
            )
        text = self._why_alone(averaged, merged is not None)
        opened.notices.append(text)
        averaging = self._averaging
        if averaging is not None and (averaged or averaging.one_copy or (self._apart and averaging.overwrites)):
            gone = AFTERWARDS if text == AFTERWARDS else GONE.format(text)
            for leaf in opened.leaves:
                opened.problems.setdefault(leaf.index, gone)
        return opened.close(index, scale=scale, adam=adam)

    def _why_alone(self, averaged: bool, merged: bool) -> str:
        if self._apart:
            return self._apart
        if self._averaging is None:
            return UNWRAPPED
        if self._exchange is not None and self._exchange.uneven:
            return self._exchange.uneven
        if merged or averaged:
            return AFTERWARDS
        return NOT_AVERAGED


def distributed() -> bool:
    """Whether the user has initialised ``torch.distributed`` with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
