"""What the checks raise: assertion errors whose text stands alone and whose ``.diagnosis`` holds it as data."""

from __future__ import annotations

from typing import Any


class CheckFailure(AssertionError):  # noqa: N818  # a failed assertion, not a broken program
    """Base of everything that a check raises when what it checks is wrong.

    Attributes:
        diagnosis: what was found, as a record; its type is documented with each check.
    """

    def __init__(self, message: str, diagnosis: Any = None) -> None:
        super().__init__(message)
        self.diagnosis = diagnosis


class AccumulationFailure(CheckFailure):
    """The accumulated gradient is not the gradient of the effective minibatch."""


class PerSampleFailure(CheckFailure):
    """Per-sample gradients do not add up, or do not exist, or hooks captured others."""


class LeakageFailure(CheckFailure):
    """A sample's output depends on other samples."""


class GradientFailure(CheckFailure):
    """A gradient is not the derivative of the loss."""


class BiasFailure(CheckFailure):
    """The minibatch gradient is not an unbiased estimate of the full one."""


class NonFiniteFailure(CheckFailure):
    """A gradient is infinite or not a number."""


class IdleParameterFailure(CheckFailure):
    """A parameter gets no gradient, or one that is always zero."""


class RuleFailure(CheckFailure):
    """A layer's rule describes other contributions than autograd makes."""


class GoldenFailure(CheckFailure):
    """A gradient is not the one that was recorded, or none was recorded."""


class ExpectationFailure(CheckFailure):
    """A watched test's report does not meet what its marker expects."""
