"""Findings turned into the record that users read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscope.checks.causes import Finding
from gradscope.checks.diagnosis import Cause, Diagnosis, ParameterError
from gradscope.checks.judge import Judged
from gradscope.checks.remedies import REMEDIES


def described(findings: Sequence[Finding], calm: str = "as is") -> Diagnosis:
    """The record of the likeliest finding; the others become evidence beside it."""
    first = findings[0]
    shown, evidence = first.shown, [first.evidence]
    others: list[Cause] = list(first.also)
    evidence += [f"besides ({f.cause}): {f.evidence}" for f in findings[1:] if f.cause not in (first.cause, *others)]
    if calm != "as is":
        evidence.append(
            f"compared with {'dropout switched off' if calm == 'no dropout' else 'the model in eval mode'}."
        )
    table = sorted(_errors(shown, shown.judged), key=lambda p: -p.error)
    return Diagnosis(
        first.cause, coefficients=shown.ratios, residual=shown.residual, evidence=tuple(evidence),
        remedy=REMEDIES[first.cause], also=tuple(others), split=shown.sizes, window=shown.window,
        error=0.0 if shown.right else shown.error(), parameters=tuple(table) if not shown.right else (),
    )  # fmt: skip


def _errors(window: Judged, got: Tensor) -> list[ParameterError]:
    truth, errors = window.truth, window.truth.errors(got)
    rows = []
    for i, (name, place) in enumerate(zip(truth.layout.names, truth.layout.slices, strict=True)):
        if not window.trace.owned[i]:
            continue
        a, b = got[place], truth.whole[place]
        dot, square = float(a @ b), float(b @ b)
        size = float(torch.linalg.vector_norm(a)) * square**0.5
        rows.append(
            ParameterError(
                name, float(a.norm()), square**0.5, dot / square if square > 0 else float("nan"),
                dot / size if size > 0 else float("nan"), float(errors[i]),
            )
        )  # fmt: skip
    return rows
