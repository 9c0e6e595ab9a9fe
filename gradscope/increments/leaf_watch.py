"""Hooks on one parameter, before and after something is added to its ``.grad``."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gradscope.capture.hook import Hook
from gradscope.increments.increment import Increment
from gradscope.increments.squares import square
from gradscope.moments.leaf import Leaf

if TYPE_CHECKING:
    from gradscope.increments.recorder import IncrementRecorder

SHARDED = (
    "its gradient was added without passing the parameter (sharded, or written by hand), so that what a micro-step adds is "
    "not seen: capture=False needs plain parameters"
)
SEVERAL = (
    "one micro-step reached it several times (two losses with a backward each, a reentrant checkpoint), so that the size of "
    "their sum is not known: add the losses up and call backward once, or use capture=True"
)
CHANGED = "a hook of your own on this parameter came after gradscope's: its next window is measured behind it"


class LeafWatch:
    """Reads the increment, which is never held: autograd would have to copy it into ``.grad``.

    Args:
        recorder: where the numbers go.
        leaf: the parameter.
    """

    __slots__ = (
        "__weakref__",
        "_before",
        "_changed",
        "_handles",
        "_restarts",
        "_seen",
        "_squared_norm",
        "leaf",
        "recorder",
    )

    def __init__(self, recorder: IncrementRecorder, leaf: Leaf) -> None:
        self.recorder, self.leaf = recorder, leaf
        self._seen = self._restarts = self._changed = False
        self._squared_norm: Tensor | None = None
        self._handles: list[Any] = []
        self._before: Hook | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Hang both hooks: the first comes last of its kind, and the second first, since others may change the gradient."""
        parameter, recorder = self.leaf.parameter, self.recorder
        self._before = Hook(self.before, recorder)
        self._handles.append(parameter.register_hook(self._before))
        self._handles.append(parameter.register_post_accumulate_grad_hook(Hook(_After(self), None)))
        _put_first(parameter._post_accumulate_grad_hooks)

    def detach(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            # torch keeps the empty dictionaries; without hooks there were none.
            if not getattr(self.leaf.parameter, name, None):
                setattr(self.leaf.parameter, name, None)

    @property
    def last(self) -> bool:
        """Whether no other hook can change the gradient after it was read."""
        hooks = self.leaf.parameter._backward_hooks or {}
        return len(hooks) < 2 or next(reversed(hooks.values())) is self._before

    # -- backward -----------------------------------------------------------------------------------------------------

    def before(self, grad: Tensor) -> None:
        """The increment is about to be added."""
        # Shielded here and not by a wrapper: this runs for each parameter in each micro-step.
        recorder, started = self.recorder, time.perf_counter()
        try:
            self._see(grad)
        except Exception as error:  # a failure of ours must never end the user's backward
            recorder.note(error)
        recorder.seconds += time.perf_counter() - started

    def _see(self, grad: Tensor) -> None:
        """Its size. Where it will be all of ``.grad``, what is stored is read afterwards instead."""
        leaf = self.leaf
        if self.recorder.backward is None:
            self.recorder.enter()
        stored = leaf.parameter.grad
        self._seen, self._restarts, self._changed = True, stored is None, False
        self._squared_norm = None
        if stored is None:
            return
        self._squared_norm = square(grad.detach())
        if leaf.version is not None and leaf.version != stored._version:
            self._changed = bool((stored != 0).any())
            self._restarts = not self._changed

    def after(self, grad: Tensor) -> None:
        """It was added; ``autograd.grad`` passes the other hook and not this one."""
        backward, leaf = self.recorder.backward or self.recorder.enter(), self.leaf
        total = square(grad.detach())
        problem = "" if self._seen else SHARDED
        problem = problem or ("" if self.last else CHANGED) or (SEVERAL if leaf.index in backward.arrivals else "")
        on_top = leaf.version is None and self._squared_norm is not None
        size = total if self._squared_norm is None else self._squared_norm
        if self._restarts and leaf.index not in backward.arrivals:
            backward.restarted.add(leaf.index)
        elif self._changed:
            backward.touched.add(leaf.index)
        backward.arrivals[leaf.index] = Increment(size, total, grad, on_top=on_top, problem=problem)
        self._seen, self._squared_norm = False, None


class _After:
    """Holds the watch weakly: the collector does not look into hooks of this kind, so that a cycle would stay for ever."""

    __slots__ = ("_watch",)

    def __init__(self, watch: LeafWatch) -> None:
        self._watch = weakref.ref(watch)

    def __call__(self, parameter: Tensor) -> None:
        watch = self._watch()
        if watch is not None and parameter.grad is not None:
            recorder, started = watch.recorder, time.perf_counter()
            try:
                watch.after(parameter.grad)
            except Exception as error:  # a failure of ours must never end the user's backward
                recorder.note(error)
            recorder.seconds += time.perf_counter() - started


def _put_first(hooks: dict[int, Any] | None) -> None:
    """Have the newest hook run before those that were there."""
    if hooks is not None and len(hooks) > 1:
        newest = next(reversed(hooks))
        others = {key: hook for key, hook in hooks.items() if key != newest}
        hook = hooks[newest]
        hooks.clear()
        hooks[newest] = hook
        hooks.update(others)
