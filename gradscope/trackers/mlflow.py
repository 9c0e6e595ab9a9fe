"""MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gradscope.errors import InvalidArgumentError
from gradscope.trackers.tracker import comes_from

#: What MLflow takes in the name of a metric.
_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)


class MLflow:
    """A run of MLflow; windows are its steps, and brackets in names become underscores."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id

    @classmethod
    def of(cls, target: Any) -> MLflow | None:
        """The tracker of a run, or of the run that is active where the module or a client is given.

        Raises:
            InvalidArgumentError: no run is active.
        """
        if not comes_from(target, "mlflow"):
            return None
        if hasattr(target, "info"):
            return cls(target.info.run_id)
        import mlflow

        active = mlflow.active_run()
        if active is None:
            raise InvalidArgumentError(
                "log_to: MLflow has no active run. Call mlflow.start_run() first, or pass a run: client.create_run(...)."
            )
        return cls(active.info.run_id)

    def write(self, figures: Mapping[str, float], window: int) -> None:
        """One batch of metrics, at the window's number; asynchronous where the user has switched that on."""
        import mlflow

        named = {_FORBIDDEN.sub("_", name): value for name, value in figures.items()}
        mlflow.log_metrics(named, step=window, run_id=self._run_id)
