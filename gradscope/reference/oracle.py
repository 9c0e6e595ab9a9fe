"""Per-sample gradients, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from gradscope.errors import MixedSamplesError
from gradscope.random_numbers import random_state, set_random_state
from gradscope.reference.batch import sample_count
from gradscope.reference.passes import Call, LossFn, Pass
from gradscope.reference.residual import TOLERANCE, residual
from gradscope.reference.slices import contributions_of_slices


def per_sample_gradients(model: nn.Module, loss_fn: LossFn, batch: Any) -> dict[str, Tensor]:
    """Per-sample gradients ``gᵢ = n·hᵢ``, where ``hᵢ`` is what sample ``i`` adds to ``p.grad``.

    So the mean of ``gᵢ`` is ``p.grad`` exactly, whatever the loss's reduction. The model runs in its present mode. With
    dropout, the random state at the call decides the masks: the result belongs to a forward from that same state. A
    loss that mixes samples by itself (contrastive losses, batch statistics) has no per-sample gradients either; there
    ``hᵢ`` is the share that flows through row ``i`` of the outputs.

    Where the model's outputs have no row per sample (it returns a scalar loss, is used through its submodules, or the
    loss reads parameters directly), the loss is run on single samples instead, and the weights with which they make
    up the batch's gradient are solved for and verified.

    Args:
        model: any module; its parameters, ``.grad``, buffers, modes and the random state are left as they were.
        loss_fn: ``loss_fn(model, batch)``, the scalar loss of a whole batch.
        batch: any nested structure of tensors whose dimension 0 is the sample.

    Returns:
        ``[n, *p.shape]`` in the parameter's dtype, for every parameter that requires a gradient; zero where nothing
        reaches it. A tied parameter has one entry, under its first name in ``named_parameters``.

    Raises:
        MixedSamplesError: a sample's output depends on other samples, so per-sample gradients do not exist.
        InvalidArgumentError: the batch has no common dimension 0, the loss is no scalar or has no gradient, or the
            batch's gradient is no weighted sum of single samples' gradients.
    """
    n = sample_count(batch)
    with _unchanged(model):
        pass_ = Pass.run(model, loss_fn, batch)
        if pass_.has_rows(n) and not pass_.reads_parameters_directly():
            for call in pass_.calls:
                _require_independent_rows(model, call, n)
            contributions = [pass_.gradient(row) for row in range(n)]
            _require_sum(contributions, pass_.gradient())
        else:
            contributions = contributions_of_slices(model, loss_fn, batch, n, pass_)
    return {name: n * torch.stack([one[name] for one in contributions]) for name in contributions[0]}


def _require_independent_rows(model: nn.Module, call: Call, n: int) -> None:
    """Output row ``i`` must stay as it is when every other row of the input is replaced by row ``i``."""
    for i in range(n):

        def only(leaf: Any, i: int = i) -> Any:
            batched = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == n
            return leaf[[i] * n] if batched else leaf

        args, kwargs = tree.tree_map(only, (call.args, call.kwargs))
        set_random_state(call.random_state)
        with torch.no_grad():
            outputs = tree.tree_leaves(model(*args, **kwargs))
        for was, now in zip(call.outputs, outputs, strict=True):
            if not (isinstance(was, Tensor) and was.requires_grad):
                continue
            if not _close(now[i], was[i]):
                raise MixedSamplesError(
                    f"{type(model).__name__} ({'training' if model.training else 'eval'} mode) mixes the samples of a "
                    f"batch: output {i} changes when the other samples are replaced, so per-sample gradients do not "
                    "exist. Put BatchNorm in eval mode, or replace it with GroupNorm."
                )


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = TOLERANCE.get(b.dtype, 2e-4)
    a, b = (t.detach().cpu() if t.is_complex() else t.detach().cpu().double() for t in (a, b))
    scale, error = float(torch.linalg.vector_norm(b)), float(torch.linalg.vector_norm(a - b))
    return error <= tolerance * scale or scale != scale


def _require_sum(contributions: list[dict[str, Tensor]], whole: dict[str, Tensor]) -> None:
    error = residual(contributions, [1.0] * len(contributions), whole)
    if error > 1:
        raise MixedSamplesError(
            "What flows through the rows of the model's outputs does not add up to the gradient of the loss "
            f"({error:.1g} times the rounding bound), so per-sample gradients do not exist."
        )


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put buffers and the random state back at the end; parameters and ``.grad`` are never touched."""
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    random = random_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, was in buffers:
                if not torch.equal(buffer, was):
                    buffer.copy_(was)
        set_random_state(random)
