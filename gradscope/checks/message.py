"""The text of a failed accumulation check."""

from __future__ import annotations

from math import isfinite

from gradscope.checks.diagnosis import Diagnosis, ParameterError

_SHOWN_PARAMETERS = 8


def accumulation_message(diagnosis: Diagnosis) -> str:
    """Everything a reader needs: what is wrong, the likely cause, what to change, and the figures."""
    cause = " or ".join(dict.fromkeys((diagnosis.cause, *diagnosis.also)))
    parts = [_headline(diagnosis), "", f"Likely cause: {cause}"]
    parts += [f"  {line}" for line in diagnosis.evidence]
    parts += ["", "What to change:", *(f"  {line}".rstrip() for line in diagnosis.remedy.splitlines())]
    if diagnosis.coefficients:
        parts += ["", *_micro_batches(diagnosis)]
    if diagnosis.parameters:
        parts += ["", *_parameters(diagnosis.parameters)]
    return "\n".join(parts)


def _headline(d: Diagnosis) -> str:
    if d.cause == "scheduler per micro-step":
        return "The accumulated gradient is right, but the learning rate moves on with every micro-batch."
    what = "The gradient that the training step accumulated is not the gradient of the loss over the whole minibatch"
    ratios = [p.ratio for p in d.parameters]
    if ratios and max(ratios) - min(ratios) <= 1e-3 * abs(ratios[0]) and all(p.cosine > 0.9999 for p in d.parameters):
        size = f"{ratios[0]:.4g} times too large" if ratios[0] > 1 else f"{ratios[0]:.4g} of what it should be"
        return f"{what}:\nit points the right way, but is {size}."
    return f"{what}:\nit is off by {100 * d.error:.3g} % of its size." if isfinite(d.error) else f"{what}."


def _micro_batches(d: Diagnosis) -> list[str]:
    total, first = sum(d.split), 0
    lines = [
        f"Window {d.window}, {total} samples in {len(d.split)} micro-batch{'es' if len(d.split) > 1 else ''} (counts: "
        "1 is right, 0 is lost):",
        "  micro-batch  samples  counts",
    ]
    for number, (size, ratio) in enumerate(zip(d.split, d.coefficients, strict=True), 1):
        span = f"{first}-{first + size - 1}" if size > 1 else f"{first}"
        lines.append(f"  {number:<11}  {span:<7}  {ratio:.4g}")
        first += size
    if d.residual > 1e-3:
        lines.append(f"  {100 * d.residual:.3g} % of the gradient is no combination of these micro-batches.")
    return lines


def _parameters(parameters: tuple[ParameterError, ...]) -> list[str]:
    shown = parameters[:_SHOWN_PARAMETERS]
    width = max(len("parameter"), *(len(p.name) for p in shown))
    lines = [f"  {'parameter':<{width}}  {'|got|':>9}  {'|right|':>9}  {'got/right':>9}  {'cosine':>7}"]
    lines += [
        f"  {p.name:<{width}}  {p.got:>9.3g}  {p.expected:>9.3g}  {p.ratio:>9.4g}  {p.cosine:>7.4f}" for p in shown
    ]
    rest = len(parameters) - len(shown)
    return [*lines, f"  and {rest} more"] if rest else lines
