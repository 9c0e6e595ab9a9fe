"""A model lent to a check: in float64 where it can be, and given back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradscope.checks.precision import is_wide, widen, widened
from gradscope.checks.state import Companions, Snapshot

_ALONE = Companions((), (), ())


@contextmanager
def borrowed(model: nn.Module, batch: Any, *, wide: bool = True) -> Iterator[Any]:
    """Yield the batch to use; parameters, ``.grad``, buffers, modes and random state are put back afterwards."""
    snapshot = Snapshot(model, _ALONE)
    try:
        if wide:
            widen(model, ())
        for p in model.parameters():
            p.grad = None
        with torch.compiler.set_stance("force_eager"):
            yield widened(batch) if wide else batch
    finally:
        snapshot.restore()


def can_widen(model: nn.Module, batch: Any, run: Callable[[Any], Any]) -> bool:
    """Whether ``run(batch)`` works with everything in float64."""
    if is_wide(model):
        return True
    try:
        with borrowed(model, batch) as wide:
            run(wide)
    except Exception:  # the user's code may fail in any way on another dtype; it then runs in its own
        return False
    return True
