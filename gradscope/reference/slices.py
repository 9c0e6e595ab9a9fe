"""Contributions where the outputs have no rows: from single samples, weighed so that they make up the whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradscope.errors import InvalidArgumentError, MixedSamplesError
from gradscope.reference.batch import take
from gradscope.reference.passes import LossFn, Pass, gradient_of, run_loss
from gradscope.reference.residual import residual


def contributions_of_slices(
    model: nn.Module, loss_fn: LossFn, batch: Any, n: int, whole: Pass
) -> list[dict[str, Tensor]]:
    """``hᵢ = aᵢ·mᵢ`` with ``mᵢ`` the gradient of the loss of sample ``i`` alone and ``Σ aᵢmᵢ`` the batch's gradient."""
    where = f"{type(model).__name__}: the outputs have no row per sample, so single samples were run; "
    if whole.random:
        raise InvalidArgumentError(
            where + "but the model draws random numbers (dropout), and a single sample draws others than the batch. "
            "Use eval mode, or let the model return its outputs and compute the loss in loss_fn."
        )
    target = whole.gradient()
    single = []
    for i in range(n):
        try:
            loss = run_loss(model, loss_fn, whole.leaves, take(batch, [i]))
        except (RuntimeError, ValueError, IndexError) as error:
            raise MixedSamplesError(where + f"but sample {i} alone cannot be run: {error}") from error
        single.append(gradient_of(loss, whole.leaves))
    for weights in ([1.0 / n] * n, [1.0] * n, _weights(single, target)):
        if weights is not None and residual(single, weights, target) <= 1:
            return [{name: a * g for name, g in one.items()} for a, one in zip(weights, single, strict=True)]
    raise MixedSamplesError(
        where
        + "but their gradients cannot be weighted to make up the batch's gradient: samples interact (BatchNorm in "
        "training mode, contrastive losses), or the weights are not determined. Let the model return its outputs and "
        "compute the loss in loss_fn."
    )


def _weights(single: list[dict[str, Tensor]], target: dict[str, Tensor]) -> list[float] | None:
    """Weights ``aᵢ`` with ``Σ aᵢmᵢ = target`` in least squares; None where they are not unique."""
    columns = torch.stack([torch.cat([g.cpu().double().reshape(-1) for g in one.values()]) for one in single], 1)
    scale = columns.norm(dim=0)
    if not bool((scale > 0).all()):
        return None
    columns = columns / scale
    if int(torch.linalg.matrix_rank(columns, rtol=1e-4)) < len(single):
        return None
    goal = torch.cat([g.cpu().double().reshape(-1) for g in target.values()])
    solution = torch.linalg.lstsq(columns, goal.unsqueeze(1)).solution[:, 0] / scale
    return [float(a) for a in solution]
