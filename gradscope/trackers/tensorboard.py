"""TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TensorBoard:
    """A ``SummaryWriter`` of torch or tensorboardX, or what has its ``add_scalar``."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @classmethod
    def of(cls, target: Any) -> TensorBoard | None:
        """The tracker of this writer; None where it is something else."""
        return cls(target) if callable(getattr(target, "add_scalar", None)) else None

    def write(self, figures: Mapping[str, float], window: int) -> None:
        """One scalar each, at the window's number."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, window)
