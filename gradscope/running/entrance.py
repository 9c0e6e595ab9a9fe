"""Calls of modules, seen before anything of them runs: hooks hung there are in place for that very call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module

from gradscope.capture.compiled import leave_uncompiled


class Entrance:
    """Stands before every call of a module while it is open, and calls ``arrive`` with the module.

    torch's own global hook on forwards comes too late: the hooks that it hangs on the module that is being called run from
    the next call on only. It also warns around compiled modules, and ends up inside their graphs.

    Args:
        arrive: called with each module that is called, outermost first; never while a graph is being compiled.
    """

    def __init__(self, arrive: Callable[[Module], None]) -> None:
        self._arrive = arrive
        self._open = False
        self._standing: Callable[..., Any] | None = None
        self._original: Callable[..., Any] | None = None

    def open(self) -> None:
        """Stand before calls from now on."""
        self._open = True
        if self._standing is None:
            self._original = Module.__call__
            self._standing = _standing(self, Module.__call__)
        if Module.__call__ is self._original:
            Module.__call__ = self._standing  # type: ignore[method-assign]

    def close(self) -> None:
        """Step aside: calls go straight to the module again."""
        self._open = False
        # Someone else may stand before it by now, or hold on to it (a compiled module does): then it only passes calls on.
        if self._standing is not None and Module.__call__ is self._standing:
            Module.__call__ = self._original  # type: ignore[method-assign,assignment]

    def passes(self, module: Module) -> None:
        """A module is being called."""
        if self._open:
            self._arrive(module)


def _standing(entrance: Entrance, original: Callable[..., Any]) -> Callable[..., Any]:
    is_compiling = torch.compiler.is_compiling

    def __call__(self: Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        if not is_compiling():
            entrance.passes(self)
        return original(self, *args, **kwargs)

    # Without this the compiler, which starts at the first frame that is not torch's own, would start here, with the module's
    # hooks inside its graph instead of before it.
    leave_uncompiled(__call__.__code__, callees=False)
    return __call__
