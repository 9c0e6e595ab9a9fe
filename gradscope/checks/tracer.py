"""Hooks that write a trace while the user's step runs. They change nothing and leave nothing behind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

from gradscope.checks.layout import Layout
from gradscope.checks.state import Companions
from gradscope.checks.trace import Backward, Step, WindowTrace, Write


class Tracer:
    """Writes one ``WindowTrace`` after another: ``begin``, run the user's code, ``end``."""

    def __init__(self, model: nn.Module, layout: Layout, companions: Companions, *, watch_writes: bool = True) -> None:
        self._model, self._layout, self._companions = model, layout, companions
        self._watch_writes = watch_writes
        self._stack = ExitStack()
        self._trace: WindowTrace | None = None
        self._known = torch.zeros(0, device="cpu")
        self._micro_batches: list[list[Tensor]] = []
        self._addresses: dict[tuple[int, tuple[int, ...]], int] = {}
        self._fed: list[int] = []
        self._in_backward = self._in_step = False
        self._increments: dict[int, Tensor] = {}
        self._moved = False
        self._values = torch.zeros(0, device="cpu")
        self._write_open = self._norm_read = False
        self._epochs: list[int] = []

    def __enter__(self) -> Tracer:
        handles: list[Any] = [
            p.register_hook(lambda grad, i=i: self._leaf(i, grad)) for i, p in enumerate(self._layout.parameters)
        ]
        handles.append(self._model.register_forward_pre_hook(self._forward, with_kwargs=True))
        handles.append(register_optimizer_step_pre_hook(self._before_step))
        handles.append(register_optimizer_step_post_hook(self._after_step))
        for handle in handles:
            self._stack.callback(handle.remove)
        if self._watch_writes:
            self._stack.enter_context(_GradientWrites(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def begin(self, micro_batches: Sequence[Any] = ()) -> None:
        """Start a window; its micro-batches are recognised where they go into the model unchanged."""
        now = self._layout.gradients()
        self._trace = WindowTrace(self._layout, self._layout.values(), now, now)
        self._micro_batches, self._addresses = [], {}
        for micro_batch in micro_batches:
            self.feed(micro_batch)
        self._known, self._fed, self._write_open, self._norm_read = now, [], False, False
        self._epochs = [_epoch(one) for one in self._companions.schedulers]

    def feed(self, micro_batch: Any) -> None:
        """Tell of one more micro-batch of this window."""
        leaves = tree.tree_leaves(micro_batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()]
        self._addresses |= {_address(tensor): len(self._micro_batches) for tensor in tensors}
        self._micro_batches.append(tensors)

    def end(self) -> WindowTrace:
        """Close the window."""
        trace = self._open_trace()
        self.look()
        trace.end = self._known
        trace.end_moved = not _same(self._layout.values(), trace.start)
        now = [_epoch(one) for one in self._companions.schedulers]
        trace.schedule = tuple(b - a for a, b in zip(self._epochs, now, strict=True))
        self._trace = None
        return trace

    def _open_trace(self) -> WindowTrace:
        if self._trace is None:
            raise RuntimeError("no window is open")
        return self._trace

    @property
    def quiet(self) -> bool:
        """Whether changes of ``.grad`` are expected just now: in a backward, in an optimizer, between windows."""
        return self._in_backward or self._in_step or self._trace is None

    def look(self, operator: str | None = None) -> None:
        """Compare ``.grad`` with what was last known, and note a write where it changed."""
        trace, now = self._open_trace(), self._layout.gradients()
        changed = frozenset(i for i, s in enumerate(self._layout.slices) if not _same(now[s], self._known[s]))
        if changed:
            operators = (operator,) if operator else ()
            last = trace.writes[-1] if trace.writes and self._write_open else None
            # One transform often comes as one operator per parameter: those belong together.
            if last and operators and last.operators and not (last.changed & changed):
                last.after, last.changed = now, last.changed | changed
                last.operators += operators
            else:
                position, steps = len(trace.backwards), len(trace.steps)
                trace.writes.append(Write(position, steps, self._known, now, operators, changed, self._norm_read))
            self._write_open, self._norm_read = True, False
        self._known = now

    def noticed_norm(self) -> None:
        """A norm of the gradients was read: what follows may be clipping."""
        self._norm_read, self._write_open = True, False

    def gradient_storages(self) -> set[int]:
        """Addresses of the memory that holds the present ``.grad``."""
        grads = [p.grad for p in self._layout.parameters if p.grad is not None and p.grad.layout is torch.strided]
        return {g.untyped_storage().data_ptr() for g in grads}

    def _forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._trace is None or not torch.is_grad_enabled():
            return
        self._note_modes(self._trace)
        inputs = [leaf for leaf in tree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        same = [self._addresses[key] for key in map(_address, inputs) if key in self._addresses]
        if same:  # the micro-batch's own tensors went in: no need to compare values
            self._fed += dict.fromkeys(same)
            return
        for index, tensors in enumerate(self._micro_batches):
            if any(a.shape == b.shape and torch.equal(a, b) for a in inputs for b in tensors):
                self._fed.append(index)

    def _note_modes(self, trace: WindowTrace) -> None:
        if trace.modes is None:
            trace.modes = tuple(m.training for m in self._model.modules())

    def _leaf(self, index: int, grad: Tensor) -> None:
        if self._trace is None:
            return
        if not self._in_backward:
            self.look()
            self._write_open = False
            self._in_backward = True
            self._note_modes(self._trace)
            self._increments = {}
            self._values = self._layout.values()
            self._moved = not _same(self._values, self._trace.start)
            if not self._trace.backwards:
                self._trace.leftover = self._known
            torch.autograd.Variable._execution_engine.queue_callback(self._end_of_backward)
        seen = self._increments.get(index)
        value = (grad.to_dense() if grad.layout is not torch.strided else grad).detach()
        self._increments[index] = value.clone() if seen is None else seen + value

    def _end_of_backward(self) -> None:
        self._in_backward = False
        if self._trace is None:
            return
        increment = self._layout.vector(self._increments.get(i) for i in range(len(self._layout.names)))
        now = self._layout.gradients()
        rates = tuple(float(g["lr"]) for o in self._companions.optimizers for g in o.param_groups if "lr" in g)
        scale = next((float(s.get_scale()) for s in self._companions.scalers if s.is_enabled()), None)
        fed = tuple(dict.fromkeys(self._fed))
        during = not _same(self._layout.values(), self._values)
        self._trace.backwards.append(Backward(increment, self._known, now, fed, self._moved, during, rates, scale))
        self._known, self._fed, self._increments = now, [], {}

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        owned = self._owned(optimizer)
        if self._trace is None or not any(owned) or self._in_backward:
            return
        self.look()
        self._write_open, self._in_step = False, True
        # Fused optimizers divide the loss scale out themselves, later than this.
        scale = getattr(optimizer, "grad_scale", None)
        applied = self._known / float(scale) if scale is not None else self._known
        self._trace.steps.append(Step(len(self._trace.backwards), owned, applied))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._trace is None or not any(self._owned(optimizer)) or not self._in_step:
            return
        self._in_step = False
        step, done = self._trace.steps[-1], self._trace.backwards
        if len(done) > step.position:
            # Backwards in a closure: the step applied what the last one before the parameters moved had left.
            first = next((i for i in range(step.position + 1, len(done)) if done[i].moved), len(done))
            step.position, step.gradient, step.inside = first, done[first - 1].after, True
        self._known = self._layout.gradients()

    def _owned(self, optimizer: Optimizer) -> tuple[bool, ...]:
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return tuple(id(p) in theirs for p in self._layout.parameters)


class _GradientWrites(TorchDispatchMode):
    """Sees every operator that changes a ``.grad`` in place, and the norms that clipping reads."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func)
        writes, norm = func._schema.is_mutable, "norm" in name
        if self._tracer.quiet or not (writes or norm) or not self._touches((args, kwargs)):
            return func(*args, **kwargs)
        if not writes:
            self._tracer.noticed_norm()
            return func(*args, **kwargs)
        self._tracer.look()
        result = func(*args, **kwargs)
        self._tracer.look(name)
        return result

    def _touches(self, arguments: Any) -> bool:
        theirs = self._tracer.gradient_storages()
        return any(
            isinstance(leaf, Tensor) and leaf.layout is torch.strided and leaf.untyped_storage().data_ptr() in theirs
            for leaf in tree.tree_leaves(arguments)
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal, where NaN equals NaN."""
    return torch.equal(a, b) or torch.equal(a.view(torch.int64), b.view(torch.int64))


def _address(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return (tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)), tuple(tensor.shape)


def _epoch(scheduler: Any) -> int:
    return int(getattr(scheduler, "last_epoch", 0))
