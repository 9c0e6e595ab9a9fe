"""Noise from what each micro-step adds to ``.grad``, as two numbers a parameter: ``watch(..., capture=False)``."""

from gradscope.increments.recorder import IncrementRecorder
from gradscope.increments.window import IncrementWindow

__all__ = ["IncrementRecorder", "IncrementWindow"]
