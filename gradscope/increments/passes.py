"""Which forward a backward belongs to, from hooks on the model itself alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from gradscope.capture.forward import Forward
from gradscope.capture.hook import Hook
from gradscope.capture.tensors import batch_size, tensors_in

if TYPE_CHECKING:
    from gradscope.increments.recorder import IncrementRecorder


class Passes:
    """Follows the model's calls: how many samples each has, and when a backward reaches its outputs.

    Args:
        recorder: where the numbers go.
        begins: called when a forward with a graph begins.

    Attributes:
        unhooked: the last call, where it gave no tensor that a hook could be hung on.
    """

    def __init__(self, recorder: IncrementRecorder, begins: Callable[[], None]) -> None:
        self.recorder = recorder
        self.unhooked: Forward | None = None
        self._begins = begins
        self._current: Forward | None = None
        self._latest: weakref.ref[Forward] | None = None
        self._count = 0

    def before_model(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the model."""
        if not self.recorder.attached or torch._C._current_graph_task_id() != -1:
            return
        self.recorder.backward = self._current = None
        if not torch.is_grad_enabled():
            return
        # A window may end here, and its hooks with it.
        self._begins()
        self._count += 1
        samples = batch_size(args, kwargs, self.recorder.options.batch_dim) or 0
        self._current = Forward(samples, root=True, number=self._count)
        # Weakly: what belongs to a graph goes when the graph goes.
        self._latest = weakref.ref(self._current)

    def after_model(self, module: Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook of the model."""
        forward, self._current = self._current, None
        if forward is None or torch._C._current_graph_task_id() != -1:
            return
        outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad and tensor.grad_fn is not None]
        self.unhooked = None if outputs else forward
        reached = Hook(self.recorder.shielded(_Reached(self.recorder, forward)), self.recorder)
        for tensor in outputs:
            tensor.register_hook(reached)

    def waiting_samples(self) -> int | None:
        """Samples of the last forward that no backward has reached, or None."""
        forward = self._latest() if self._latest is not None else None
        return forward.samples or None if forward is not None and forward.step is None else None


class _Reached:
    """Hook on an output. It keeps the record of the call alive, and nothing else does."""

    __slots__ = ("forward", "recorder")

    def __init__(self, recorder: IncrementRecorder, forward: Forward) -> None:
        self.recorder, self.forward = recorder, forward

    def __call__(self, grad: Tensor) -> None:
        self.recorder.enter().reach(self.forward)
