"""The callable that is hung on modules and tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.compiler import is_compiling
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


def hang(tensor: Tensor, hook: Hook) -> None:
    """``tensor.register_hook(hook)`` without the handle, which takes most of the time that registering takes."""
    node = tensor.grad_fn
    if tensor._backward_hooks is not None or node is None or has_torch_function_unary(tensor):
        tensor.register_hook(hook)
        return
    # As torch does it, but for the number: handles count from 0.
    tensor._backward_hooks = OrderedDict({id(hook): hook})
    node._register_hook_dict(tensor)


#: Called with a model that is about to be watched: who watches models that nobody told it to lets go of them.
UNASKED: list[Callable[[torch.nn.Module], None]] = []


def find_owner(module: torch.nn.Module) -> object | None:
    """The owner of a ``Hook`` on this module, or None."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for hook in hooks.values():
            if isinstance(hook, Hook):
                return hook.owner
    return None
