"""Experiment trackers that users have already: an open set, one file and one line in ``TRACKERS`` each.

None of their packages is a dependency. What is given is recognised by where it comes from or by its methods.
"""

from __future__ import annotations

from typing import Any

from gradscope.trackers.functions import Function, MetricsLogger
from gradscope.trackers.mlflow import MLflow
from gradscope.trackers.tensorboard import TensorBoard
from gradscope.trackers.tracker import Tracker
from gradscope.trackers.trackio import Trackio
from gradscope.trackers.wandb import WeightsAndBiases

#: In the order in which they are asked whether a target is theirs.
TRACKERS = (TensorBoard, WeightsAndBiases, MLflow, Trackio, MetricsLogger, Function)

__all__ = ["TRACKERS", "Tracker", "tracker_of"]


def tracker_of(target: Any) -> Tracker | None:
    """The tracker that writes to this object; None where no kind knows it.

    Raises:
        InvalidArgumentError: it is one that has not been started.
    """
    return next((found for kind in TRACKERS if (found := kind.of(target)) is not None), None)
