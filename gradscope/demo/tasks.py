"""The open set of the demo's tasks: one file and one line here each. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from gradscope.demo.task import Problem


@dataclass(frozen=True, slots=True)
class Task:
    """One task and the sizes that it runs at unless told otherwise.

    Attributes:
        module: where its ``problem()`` lives.
        about: model and samples, in words.
        steps: optimizer steps.
        micro_batch: samples in one forward and backward.
        accumulate: micro-steps in one effective minibatch.
    """

    module: str
    about: str
    steps: int
    micro_batch: int
    accumulate: int

    def problem(self) -> Problem:
        """Model, optimizer, loss and samples, made afresh."""
        make = cast("Callable[[], Problem]", importlib.import_module(self.module).problem)
        return make()


TASKS = {
    "digits": Task("gradscope.demo.digits", "a small CNN on scikit-learn's handwritten digits", 100, 16, 4),
    "text": Task("gradscope.demo.text", "a character GPT on Python's own help texts", 120, 8, 4),
    "diabetes": Task("gradscope.demo.diabetes", "a regression on scikit-learn's diabetes patients", 200, 16, 4),
}
