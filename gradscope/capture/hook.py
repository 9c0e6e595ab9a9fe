"""The callable that is hung on modules and tensors."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.compiler import is_compiling
from torch.nn.modules import module as every_module
from torch.overrides import has_torch_function_unary
from torch.utils.checkpoint import _StopRecomputationError

from gradscope.capture.compiled import in_one_graph, leave_uncompiled


class Hook:
    """A hook that belongs to one scope and stays behind when the model is copied or saved.

    A deep copy (an EMA model, say) would feed the original's scope, and a pickled closure would fail to load. Both get a
    function of the standard library that takes anything and returns None.
    """

    # torch warns when a tensor with hooks is saved; this one is meant to stay behind.
    __torch_unserializable__ = True

    def __init__(self, function: Callable[..., Any], owner: object) -> None:
        self._function = function
        self.owner = owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        # Being disabled for the compiler costs some microseconds a call, so only a call that is being compiled pays for it.
        if is_compiling():
            return None if in_one_graph() else self._uncompiled(*args, **kwargs)
        return self._function(*args, **kwargs)

    # The lazy form of torch.compiler.disable, which would import the whole compiler here and now.
    @_disable_dynamo
    def _uncompiled(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return nullcontext().__exit__

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")


leave_uncompiled(Hook.__call__.__code__, callees=True)


class Owner(Protocol):
    """Who counts the time of its hooks and is told what failed in them."""

    seconds: float
    failures: list[str]


class Shielded(Hook):
    """A hook whose time is counted, and whose failures are kept from the user's run.

    Args:
        function: what to call.
        owner: who takes note.
    """

    owner: Owner

    def __call__(self, *args: Any) -> Any:  # noqa: D102
        if is_compiling():
            return None if in_one_graph() else self._uncompiled(*args)
        return self._shielded(*args)

    @_disable_dynamo
    def _uncompiled(self, *args: Any) -> Any:
        return self._shielded(*args)

    def _shielded(self, *args: Any) -> Any:
        started, owner = perf_counter(), self.owner
        try:
            return self._function(*args)
        except _StopRecomputationError:
            # A checkpoint stops its recomputation with this; it is the user's, not ours.
            raise
        except Exception as error:  # a failure of ours must never end the user's backward
            owner.failures.append(f"{type(error).__name__}: {str(error).strip()[:300]}")
            return None
        finally:
            owner.seconds += perf_counter() - started


leave_uncompiled(Shielded.__call__.__code__, callees=True)


def hang(tensor: Tensor, hook: Hook) -> weakref.ref[OrderedDict[int, Any]]:
    """``tensor.register_hook(hook)`` without the handle, which takes most of the time that registering takes.

    Returns:
        All hooks on the tensor, those to come included. The graph has them, whatever becomes of the tensor.
    """
    node, hooks = tensor.grad_fn, tensor._backward_hooks
    if hooks is None and node is not None and not has_torch_function_unary(tensor):
        # As torch does it, but for the number: handles count from 0.
        hooks = tensor._backward_hooks = OrderedDict({id(hook): hook})
        node._register_hook_dict(tensor)
    else:
        tensor.register_hook(hook)
        hooks = tensor._backward_hooks
    return weakref.ref(hooks)  # type: ignore[arg-type]


def hooks_of_others(model: torch.nn.Module, hung: Iterable[weakref.ref[OrderedDict[int, Any]]]) -> str:
    """Where hooks of the user's own hang that a second backward would call once more; empty where there are none.

    Args:
        model: the watched model.
        hung: hooks on the outputs of its layers, as ``hang`` returns them.
    """
    if every_module._global_backward_hooks or every_module._global_backward_pre_hooks:
        return "all modules"
    for name, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            return f"{name!r}" if name else "the model"
    for hooks in filter(None, (ref() for ref in hung)):
        if any(not isinstance(hook, Hook) for hook in hooks.values()):
            return "the output of a layer"
    return ""


#: Called with a model that is about to be watched: who watches models that nobody told it to lets go of them.
UNASKED: list[Callable[[torch.nn.Module], None]] = []


def find_owner(module: torch.nn.Module) -> object | None:
    """The owner of a ``Hook`` on this module, or None."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for hook in hooks.values():
            if isinstance(hook, Hook):
                return hook.owner
    return None
