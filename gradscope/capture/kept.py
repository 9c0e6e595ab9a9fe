"""What a layer read, kept the way autograd keeps things."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor


class _Keep(torch.autograd.Function):
    """A node beside the user's graph whose only purpose is to save tensors."""

    @staticmethod
    def forward(ctx: Any, trigger: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return trigger.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        return None


_TRIGGER = torch.empty(0, requires_grad=True, device="cpu")


class Kept:
    """Positional arguments of one call of a layer, its tensors saved by an autograd node of our own.

    Saving through autograd gives what a plain reference does not: reading raises if a tensor was changed in place, and
    activation checkpointing and ``saved_tensors_hooks`` treat the tensors like all others, so that nothing is held that autograd
    would have dropped.

    Args:
        args: the call's positional arguments, nested structures included.
    """

    _single: Tensor | None = None
    _node: Any = None
    _spec: Any = ()
    _version = 0

    def __init__(self, args: tuple[Any, ...]) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and kept_plainly(args[0]):
            # The usual case, in a tenth of the time.
            self._single, self._version = args[0].detach(), args[0]._version
            return
        tensors: list[Tensor] = []
        self._spec = _strip(args, tensors)
        # detach() shares the version counter, so that a later in-place change is still seen.
        self._node = _Keep.apply(_TRIGGER, *[tensor.detach() for tensor in tensors]) if tensors else None  # type: ignore[no-untyped-call]

    def read(self) -> tuple[Any, ...]:
        """The arguments as they were.

        Raises:
            RuntimeError: if a tensor was modified in place since.
        """
        if self._single is not None:
            if self._single._version != self._version:
                raise RuntimeError("a tensor that a layer had read was modified by an inplace operation")
            return (self._single,)
        saved = self._node.grad_fn.saved_tensors if self._node is not None else ()
        result: tuple[Any, ...] = _fill(self._spec, iter(saved))
        return result

    def pass_by(self) -> None:
        """Read and forget, in a backward before the last: a checkpoint holds what was recomputed until everyone has read it."""
        if self._node is not None:
            with suppress(RuntimeError):
                self.read()

    def release(self) -> None:
        """Let go: autograd frees what a layer saved as soon as its backward is over, and so does this."""
        self._node, self._spec, self._single = None, (), None


class KeptPlainly(Kept):
    """A single tensor that autograd keeps as it is."""

    def __init__(self, x: Tensor) -> None:
        self._single, self._version = x.detach(), x._version


def kept_plainly(tensor: Tensor) -> bool:
    """Whether autograd would keep this tensor as it is: no hooks on saved tensors are in force."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None and not tensor.is_inference()


class _Slot:
    __slots__ = ()


_SLOT = _Slot()


def _strip(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return _SLOT
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_strip(item, tensors) for item in value)
    if type(value) is dict:
        return {key: _strip(item, tensors) for key, item in value.items()}
    return value


def _fill(spec: Any, saved: Any) -> Any:
    if spec is _SLOT:
        return next(saved)
    if isinstance(spec, (tuple, list)) and not hasattr(spec, "_fields"):
        return type(spec)(_fill(item, saved) for item in spec)
    if type(spec) is dict:
        return {key: _fill(item, saved) for key, item in spec.items()}
    return spec
