"""What follows a common form without being of a package that we know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class MetricsLogger:
    """An object with ``log_metrics(figures, step=...)``: the loggers of Lightning, say."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    @classmethod
    def of(cls, target: Any) -> MetricsLogger | None:
        """The tracker of this logger; None where it is something else."""
        return cls(target) if callable(getattr(target, "log_metrics", None)) else None

    def write(self, figures: Mapping[str, float], window: int) -> None:
        """All at once, at the window's number."""
        self._logger.log_metrics(dict(figures), step=window)


class Function:
    """A function of the user's that takes the figures: ``run.log``, or one of their own."""

    def __init__(self, function: Callable[[dict[str, float]], Any]) -> None:
        self._function = function

    @classmethod
    def of(cls, target: Any) -> Function | None:
        """The tracker of this function; None where it is something else."""
        return cls(target) if callable(target) else None

    def write(self, figures: Mapping[str, float], window: int) -> None:
        """Call it; ``gradscope/window`` is among the figures."""
        self._function(dict(figures))
