"""Tables that are looked up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from gradscope.contributions import Contribution, Scatter
from gradscope.rules.rule import Rule, owns


def _by_frequency(module: Module, ids: Tensor, grads: Tensor) -> Tensor:
    """With ``scale_grad_by_freq`` torch divides by how often the whole micro-batch reads a row."""
    counts = torch.bincount(ids.flatten(), minlength=module.num_embeddings)  # type: ignore
    return grads / counts[ids].unsqueeze(-1).to(grads.dtype)


def describe_embedding(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """Each position's gradient lands on the row that it read; the padding row receives none."""
    ids = inputs[0].reshape(grad.shape[0], -1).long()
    grads = grad.reshape(*ids.shape, -1)
    if module.padding_idx is not None:
        grads = grads * (ids != module.padding_idx).unsqueeze(-1)
    if module.scale_grad_by_freq:
        grads = _by_frequency(module, ids, grads)
    return {"weight": Scatter(ids, grads, module.weight.shape)}  # type: ignore


def describe_bag(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """A bag's gradient lands on every row in it, weighted as the bag weighs it.

    Bags come as rows of equal size ``[n, T]``, or as one flat list of table rows with the offsets at which bags begin.
    """
    ids, bags = inputs[0].long(), grad.shape[0]
    bag_of = torch.arange(bags, device=ids.device).unsqueeze(1).expand_as(ids) if ids.dim() == 2 else _bag_of(inputs)
    weights = inputs[2] if len(inputs) > 2 else None
    scale = torch.ones_like(ids, dtype=grad.dtype) if weights is None else weights.to(grad.dtype)
    if module.padding_idx is not None:
        scale = scale * (ids != module.padding_idx)
    if module.mode == "mean":
        counted = torch.zeros_like(grad[:, 0]).index_add_(0, bag_of.flatten(), scale.flatten()).clamp(min=1)
        scale = scale / counted[bag_of]
    grads = scale.unsqueeze(-1) * grad[bag_of]
    if module.scale_grad_by_freq:
        grads = _by_frequency(module, ids, grads)
    shape = module.weight.shape
    if ids.dim() == 2:
        return {"weight": Scatter(ids, grads, shape)}  # type: ignore
    return {"weight": Scatter(ids.unsqueeze(1), grads.unsqueeze(1), shape).regroup(bag_of, bags)}  # type: ignore


def _bag_of(inputs: tuple[Any, ...]) -> Tensor:
    """The bag that each entry of a flat list belongs to; an offset behind the last entry begins no bag."""
    ids, offsets = inputs[:2]
    at = torch.arange(ids.numel(), device=ids.device)
    return torch.searchsorted(offsets.contiguous().to(at.dtype), at, right=True) - 1


def _bag_refusal(module: Module) -> str:
    if module.mode == "max":
        return "EmbeddingBag in mode 'max' picks rows by value"
    return owns("weight")(module)


EMBEDDING = Rule("embedding", describe_embedding, rows="leading", refuse=owns("weight"))
EMBEDDING_BAG = Rule("embedding bag", describe_bag, refuse=_bag_refusal)
