"""One parameter's sums over a whole window, from those of its micro-steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.columns import SumColumns
from gradscope.moments.microstep import MicroStep
from gradscope.statistics.elementwise import elementwise_moments
from gradscope.statistics.preconditioned import adam_preconditioner, sums_of_weighed, weighed_squares
from gradscope.window import ParameterSums


@dataclass(frozen=True, slots=True, eq=False)
class AdamState:
    """What an Adam-like optimizer knows of one parameter: ``v``, the step count, ``β₂`` and ``ε``."""

    second_moment: Tensor
    step: float
    beta2: float
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """One parameter in one window.

    Attributes:
        index: the parameter.
        steps: the window's micro-steps.
        own_sq: ``Σ‖hᵢ‖²``, times ``scale²``.
        grad_sq: ``‖ḡ‖²``, likewise.
        grad: ``ḡ`` times ``scale``; None without ``moments=True``.
        scale: what the loss was multiplied with.
        weight_sq_sum: ``V₂``.
    """

    index: int
    steps: Sequence[MicroStep]
    own_sq: float
    grad_sq: float
    grad: Tensor | None
    scale: float
    weight_sq_sum: float


def shares(steps: Sequence[MicroStep]) -> tuple[Tensor, float, tuple[str, ...] | None]:
    """``wᵢ``, float64 ``[n]``; ``V₂``; and what the samples are called, or None."""
    if not steps:
        # Samples that were never seen (hooks left out by a compiler): parameters have reasons, and no figures.
        return torch.empty(0, dtype=torch.float64, device="cpu"), 1.0, None
    if all(step.weights is None and step.ids is None for step in steps):
        n = sum(step.samples for step in steps)
        return torch.full((n,), 1.0 / n, dtype=torch.float64, device="cpu"), 1.0 / n, None
    whole = torch.cat(
        [
            torch.ones(step.samples, dtype=torch.float64, device="cpu") if step.weights is None else step.weights
            for step in steps
        ]
    )
    share = whole / whole.sum()
    v2 = float(share.square().sum())
    if all(step.ids is None for step in steps):
        return share, v2, None
    return share, v2, tuple(name for step in steps for name in (step.ids or [""] * step.samples))


def weighed_by_adam(grad: Tensor, steps: Sequence[MicroStep], index: int, adam: AdamState) -> Tensor | None:
    """One parameter's squares, weighed as Adam weighs them, float64 ``[2]``; None where they are not known elementwise."""
    total = second_moment(steps, index)
    if total is None:
        return None
    flat = adam.second_moment.reshape(-1)
    return weighed_squares(grad, total, lambda block: adam_preconditioner(flat[block], adam.step, adam.beta2, adam.eps))


def parameter_sums(parts: Parts, *, by_sample: bool, weighed: Tensor | None) -> ParameterSums:
    """The sums, with the loss's scale divided out.

    Args:
        parts: the micro-steps' figures.
        by_sample: whether every micro-step knows its samples' norms.
        weighed: elementwise squares as the optimizer weighs them, if it is Adam-like.
    """
    square = parts.scale * parts.scale
    norms = _sample_norms(parts) if by_sample else None
    if norms is not None and square != 1.0:
        norms = norms / square
    variance = signal = preconditioned = None
    if parts.grad is not None and norms is not None:
        variance, signal = _elementwise(parts, parts.grad)
    if weighed is not None and norms is not None:
        preconditioned = preconditioned_sums(parts, weighed)
    return ParameterSums(parts.grad_sq / square, parts.own_sq / square, norms, variance, signal, preconditioned)


def sum_columns(
    places: Mapping[str, int],
    shown: Sequence[bool],
    grad_sq: Sequence[float],
    own_sq: Sequence[float],
    full: Mapping[str, ParameterSums],
    scale: float,
) -> SumColumns:
    """A window's sums, with the loss's scale divided out.

    Args:
        places: where each parameter stands in the columns.
        shown: which of them have sums.
        grad_sq: ``‖ḡ‖²``, times ``scale²``.
        own_sq: ``Σ‖hᵢ‖²``, likewise.
        full: the records of those that have more than these.
        scale: what the loss was multiplied with.
    """
    square = scale * scale
    if square != 1.0:
        grad_sq, own_sq = [total / square for total in grad_sq], [own / square for own in own_sq]
    pairs = {name: one.preconditioned for name, one in full.items() if one.preconditioned is not None}
    return SumColumns(places, shown, grad_sq, own_sq, pairs, full)


def preconditioned_sums(parts: Parts, weighed: Tensor) -> tuple[float, float]:
    """``(tr(PΣ), GᵀPG)``, from elementwise squares as the optimizer weighs them."""
    samples = sum(step.samples for step in parts.steps)
    return sums_of_weighed((weighed / (parts.scale * parts.scale)).tolist(), parts.weight_sq_sum, samples)


def bring_norms(steps: Sequence[MicroStep]) -> None:
    """Per-sample norms from a device to the host, all of a micro-step's at once."""
    for step in steps:
        records = [record for record in step.measured.values() if record.norms is not None and not record.norms.is_cpu]
        found = [record.norms for record in records if record.norms is not None]
        if found:
            for record, norms in zip(records, torch.stack(found).cpu().double().unbind(), strict=True):
                record.norms = norms


def _sample_norms(parts: Parts) -> Tensor:
    norms = []
    for step in parts.steps:
        record = step.measured.get(parts.index)
        if record is None or record.arrival is None:
            norms.append(torch.zeros(step.samples, dtype=torch.float64, device="cpu"))
        elif record.norms is not None:
            norms.append(record.norms)
        else:
            norms.append(record.arrival.squared_norm.reshape(1).cpu().double())
    return norms[0] if len(norms) == 1 else torch.cat(norms)


def _elementwise(parts: Parts, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    total = second_moment(parts.steps, parts.index)
    if total is None:
        return None, None
    samples, scale = sum(step.samples for step in parts.steps), parts.scale
    if scale != 1.0:
        grad, total = grad / scale, total / (scale * scale)
    return elementwise_moments(grad, total, parts.weight_sq_sum, samples)


def second_moment(steps: Sequence[MicroStep], index: int) -> Tensor | None:
    """``Σ|hᵢ|²`` elementwise over all micro-steps; None where one of them does not know it."""
    total: Tensor | None = None
    for step in steps:
        record = step.measured.get(index)
        if record is None or record.arrival is None:
            continue
        moment = record.second_moment
        if moment is None and step.samples == 1 and record.arrival.fresh is not None:
            moment = dense(record.arrival.fresh).abs().square()
        if moment is None:
            return None
        total = moment if total is None else total + moment
    return total


def dense(grad: Tensor) -> Tensor:
    """The gradient in full: elementwise figures are dense, also where the gradient (of an embedding, say) is not."""
    return grad.to_dense() if grad.is_sparse else grad
