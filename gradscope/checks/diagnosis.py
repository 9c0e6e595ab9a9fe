"""What is wrong with an accumulation, as a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Cause = Literal[
    "right",
    "not divided",
    "divided twice",
    "mean of means",
    "short window",
    "zero_grad inside window",
    "missing zero_grad",
    "stepped too early",
    "regularizer per micro-step",
    "micro-batch repeated",
    "micro-batch dropped",
    "clipped per micro-step",
    "clipped before unscaling",
    "scale changed",
    "never unscaled",
    "averaged over ranks twice",
    "parameters changed inside window",
    "samples interact",
    "random",
    "scheduler per micro-step",
    "low precision",
    "unknown",
]

CAUSES: tuple[Cause, ...] = get_args(Cause)


@dataclass(frozen=True, slots=True)
class ParameterError:
    """How far one parameter's accumulated gradient is from the gradient of the loss.

    Attributes:
        name: the parameter.
        got: norm of the accumulated gradient.
        expected: norm of the gradient of the loss.
        ratio: ``⟨got, expected⟩ / ‖expected‖²``: how many times too large.
        cosine: of the angle between them; 1 where only the size is wrong.
        error: ``‖got - expected‖ / ‖expected‖``.
    """

    name: str
    got: float
    expected: float
    ratio: float
    cosine: float
    error: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The verdict on an accumulation and where it comes from.

    Attributes:
        cause: the likely cause, one of ``CAUSES``; ``"right"`` where nothing is wrong.
        coefficients: how much each micro-batch counted over how much it should: 1 everywhere is right. Of the window
            that is shown; empty where none could be found.
        residual: the part of the gradient that the coefficients do not explain, relative; NaN without coefficients.
        evidence: what was seen, in words, the decisive fact first.
        remedy: what to change, in words and code; empty where nothing is wrong.
        also: causes with the same signature, which the evidence cannot tell from this one.
        split: sizes of the micro-batches of the window that is shown.
        window: its number, from 1.
        error: largest relative error over the parameters of that window; 0 where all is right.
        parameters: every parameter's error in that window, largest first.
    """

    cause: Cause
    coefficients: tuple[float, ...] = ()
    residual: float = float("nan")
    evidence: tuple[str, ...] = ()
    remedy: str = ""
    also: tuple[Cause, ...] = ()
    split: tuple[int, ...] = ()
    window: int = 1
    error: float = 0.0
    parameters: tuple[ParameterError, ...] = ()

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        return self.cause == "right"
