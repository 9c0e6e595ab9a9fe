"""What the user says of a micro-step's samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradscope.errors import InvalidAnnotationError
from gradscope.moments.microstep import MicroStep


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """Weights and names for the micro-step whose backward comes next."""

    weights: Tensor | None
    ids: tuple[str, ...] | None

    def apply(self, step: MicroStep) -> str:
        """Write them into the micro-step; what does not fit is left out, and said."""
        for what, value in (("weights", self.weights), ("ids", self.ids)):
            if value is not None and len(value) != step.samples:
                if what == "weights":
                    step.weights = torch.full((step.samples,), float("nan"), dtype=torch.float64, device="cpu")
                return f"annotate gave {len(value)} {what} for a micro-step of {step.samples} samples"
        step.weights, step.ids = self.weights, self.ids
        return ""


def as_annotation(
    weights: Tensor | Sequence[float] | None, ids: Sequence[Any] | None, same_samples: bool | None, samples: int | None
) -> Annotation:
    """The annotation, checked as far as it can be before the backward.

    Raises:
        InvalidAnnotationError: a value or a length cannot be right.
    """
    if same_samples not in (None, True, False):
        raise InvalidAnnotationError(f"annotate: same_samples is True, False or None, got {same_samples!r}.")
    checked = None if weights is None else _weights(weights)
    names = None if ids is None else tuple(str(name.item() if isinstance(name, Tensor) else name) for name in ids)
    for what, value in (("weights", checked), ("ids", names)):
        if value is not None and samples is not None and same_samples is None and len(value) != samples:
            raise InvalidAnnotationError(
                f"annotate: got {len(value)} {what}, but the micro-step that waits for its backward has {samples} samples. "
                "Give one per sample, between its forward and its backward."
            )
    return Annotation(checked, names)


def _weights(weights: Tensor | Sequence[float]) -> Tensor:
    values = torch.as_tensor(weights, dtype=torch.float64, device="cpu").detach().cpu()
    if values.dim() != 1:
        raise InvalidAnnotationError(f"annotate: weights are one number per sample, got shape {tuple(values.shape)}.")
    bad = (~(values > 0) | values.isinf()).nonzero().flatten().tolist()
    if bad:
        raise InvalidAnnotationError(
            f"annotate: weights must be positive and finite, but sample {bad[0]} has {float(values[bad[0]])}. Leave out samples "
            "that carry no weight, or weigh them by what they have."
        )
    return values
