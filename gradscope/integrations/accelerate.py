"""Accelerate: ``scope = watch(accelerator, model, optimizer)``, on what ``accelerator.prepare`` returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from gradscope import scope as scopes
from gradscope.errors import InvalidArgumentError
from gradscope.scope import Scope
from gradscope.trackers import Tracker, tracker_of

__all__ = ["watch"]


def watch(
    accelerator: Accelerator,
    model: Any,
    *optimizers: Any,
    log_every: int = 10,
    depth: int | None = None,
    **options: Any,
) -> Scope:
    """``gradscope.watch`` on a prepared model and its optimizers, with the accelerator's scaler and trackers.

    Windows follow ``accelerator.accumulate``: a window is what one real step of the optimizer applies, also where the last of an
    epoch has fewer micro-steps.

    Args:
        accelerator: the accelerator that prepared them.
        model: the prepared model.
        optimizers: the prepared optimizers.
        log_every: measured windows between two logs to the accelerator's trackers.
        depth: how far layers are opened there, as in ``Report.groups``; None takes blocks.
        options: keywords of ``gradscope.watch``, but for ``scaler``, which is the accelerator's.

    Raises:
        InvalidArgumentError: an argument cannot work.
        GradscopeError: as ``gradscope.watch``.
    """
    if not isinstance(accelerator, Accelerator):
        raise InvalidArgumentError(
            f"watch: expected an accelerate.Accelerator first, got {type(accelerator).__name__}. Pass the one that prepared "
            "the model: watch(accelerator, model, optimizer)."
        )
    scope = scopes.watch(model, *optimizers, scaler=accelerator.scaler, **options)
    scope.log_to(AcceleratorTrackers(accelerator), every=log_every, depth=depth)
    return scope


class AcceleratorTrackers:
    """All trackers of an accelerator, those included that ``init_trackers`` starts after ``watch``.

    Each is written to directly: ``accelerator.log`` would move the steps that the user counts.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._known: dict[int, Tracker | None] = {}

    def log_metrics(self, figures: Mapping[str, float], step: int) -> None:
        """Hand the figures to each, on the main process."""
        if not self._accelerator.is_main_process:
            return
        for found in self._accelerator.trackers:
            if id(found) not in self._known:
                self._known[id(found)] = tracker_of(found.tracker)
            tracker = self._known[id(found)]
            if tracker is not None:
                tracker.write(figures, step)
