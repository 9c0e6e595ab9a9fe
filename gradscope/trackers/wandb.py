"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from gradscope.errors import InvalidArgumentError
from gradscope.trackers.tracker import comes_from


class WeightsAndBiases:
    """A run of ``wandb``: figures join the row that the user's own ``run.log`` ends.

    Rows of our own would move the run's step counter, and wandb drops what a user logs with ``step=`` below it.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("gradscope/*", step_metric="gradscope/window")

    @classmethod
    def of(cls, target: Any) -> WeightsAndBiases | None:
        """The tracker of a run, or of the module's own run; None where it is something else.

        Raises:
            InvalidArgumentError: the module has no run yet.
        """
        if not comes_from(target, "wandb") or not hasattr(target, "log"):
            return None
        run = target.run if isinstance(target, ModuleType) else target
        if run is None:
            raise InvalidArgumentError("log_to: wandb has no run yet. Call wandb.init() first, or pass its run.")
        return cls(run)

    def write(self, figures: Mapping[str, float], window: int) -> None:
        """Add to the row that is open."""
        self._run.log(dict(figures), commit=False)
