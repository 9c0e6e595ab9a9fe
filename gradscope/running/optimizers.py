"""Optimizers, seen when they are made and when they step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from gradscope.capture.hook import Hook


class Optimizers:
    """Every optimizer of torch that the process makes from now on.

    An optimizer is noted when it is allocated, not when ``__init__`` has run: so no frame of ours stands in the traceback of
    one that fails to be made, and those that are unpickled are seen too.

    Args:
        made: called when there is one more, which is not finished yet.
        stepped: called with an optimizer after each of its steps.
    """

    def __init__(self, made: Callable[[], None], stepped: Callable[[Optimizer], None]) -> None:
        #: In the order in which they were made: of two that step the same tensors the later one wraps the earlier.
        self._noted: list[weakref.ref[Optimizer]] = []
        self._made = made
        self._stepped = stepped
        self._handle: Any = None
        self._listening = False

    def listen(self) -> None:
        """Begin to look."""
        self._listening = True
        Optimizer.__new__ = self._allocate  # type: ignore[assignment]
        hook = Hook(lambda optimizer, *_: self._stepped(optimizer), None)
        self._handle = register_optimizer_step_post_hook(hook)

    def stop(self) -> None:
        """Look no more."""
        # __new__ stays: a class that once had one of its own would refuse arguments without it.
        self._listening = False
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def all(self) -> list[Optimizer]:
        """Those that still exist and are complete, oldest first; wrappers that only look like one are not among them."""
        self._noted = [noted for noted in self._noted if noted() is not None]
        alive = [optimizer for noted in self._noted if (optimizer := noted()) is not None]
        return [optimizer for optimizer in alive if "param_groups" in vars(optimizer) and _is_hooked(optimizer)]

    def note(self, optimizer: Optimizer) -> None:
        """Count one in that was made before."""
        if all(noted() is not optimizer for noted in self._noted):
            self._noted.append(weakref.ref(optimizer))

    def _allocate(self, kind: type[Optimizer], *_: Any, **__: Any) -> Optimizer:
        made = super(Optimizer, kind).__new__(kind)
        if self._listening:
            self._noted.append(weakref.ref(made))
            self._made()
        return made


def _is_hooked(optimizer: Optimizer) -> bool:
    """Whether its steps call hooks: torch sees to that when one is made in the usual way."""
    return bool(getattr(type(optimizer).step, "hooked", False))
