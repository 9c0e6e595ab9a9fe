"""What the hooks call: one object each, with a place for what it needs and no more."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Module

from gradscope.capture.compiled import leave_uncompiled
from gradscope.capture.hook import Hook
from gradscope.capture.plan import Plan
from gradscope.moments.leaf import Leaf

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder


class AboveHook:
    """Forward hook of a module that a second pass may recompute."""

    __slots__ = ("plan", "recorder")

    def __init__(self, recorder: Recorder, plan: Plan) -> None:
        self.recorder, self.plan = recorder, plan

    def __call__(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The module has run."""
        recorder, forward = self.recorder, self.recorder.forwarding.forward
        if recorder.second_pass is None or not torch.is_grad_enabled():
            return None
        if torch._C._current_graph_task_id() != -1 or recorder.tagging is not None:
            again = recorder.tagging or (recorder.backward.first if recorder.backward is not None else None)
            if again is not None:
                recorder.second_pass.keep_likewise(self.plan, again, args, kwargs)
            return None
        if forward is None or forward.samples == 1:
            return None
        return recorder.second_pass.after_module(self.plan, forward, args, kwargs, output)


class LeafHook:
    """Hook on a parameter."""

    __slots__ = ("leaf", "recorder")

    def __init__(self, recorder: Recorder, leaf: Leaf) -> None:
        self.recorder, self.leaf = recorder, leaf

    def __call__(self, grad: Tensor) -> None:
        """Its gradient is about to be added."""
        self.recorder.arrive(self.leaf, grad)


class AddedHook(Hook):
    """Hook on a parameter, after ``.grad`` has changed.

    Holds the recorder weakly: the collector does not look into hooks of this kind, so that a cycle would stay for ever.
    """

    def __init__(self, recorder: Recorder, index: int) -> None:
        super().__init__(partial(_note_added, weakref.ref(recorder), index), None)
        self._recorder, self._index = weakref.ref(recorder), index

    def __call__(self, *args: Any) -> None:
        """Something was added."""
        recorder = self._recorder()
        backward = None if recorder is None else recorder.backward
        if backward is not None and not is_compiling():
            backward.added.add(self._index)
        else:
            super().__call__(*args)


leave_uncompiled(AddedHook.__call__.__code__, callees=True)


def _note_added(reference: weakref.ref[Recorder], index: int, parameter: Tensor) -> None:
    recorder = reference()
    if recorder is None:
        return
    if recorder.backward is not None:
        recorder.backward.added.add(index)
    elif recorder.tagging is None:
        # A failure of ours must never end the user's backward.
        recorder.shielded(recorder.added_first)(index)
