"""The normalisation layers of a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn import Module

from gradscope.errors import InvalidArgumentError
from gradscope.moments.leaf import Leaf

_TYPES = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def is_normalization(module: Module) -> bool:
    """Whether it normalises: one of torch's such layers, or a class of that name that owns nothing but scales and shifts."""
    if isinstance(module, _TYPES):
        return True
    if "norm" not in type(module).__name__.lower() or next(module.children(), None) is not None:
        return False
    return all(parameter.dim() <= 1 for parameter in module.parameters(recurse=False))


def normalization_leaves(model: Module, leaves: Sequence[Leaf]) -> frozenset[int]:
    """Indices of the parameters that normalisation layers own.

    Raises:
        InvalidArgumentError: there are none.
    """
    owned = {id(p) for module in model.modules() if is_normalization(module) for p in module.parameters(recurse=False)}
    found = frozenset(leaf.index for leaf in leaves if id(leaf.parameter) in owned)
    if not found:
        raise InvalidArgumentError(
            f'watch: capture="normalization" measures the scales and shifts of normalisation layers, and {type(model).__name__} '
            "has none. Use capture=True, or capture=False with two micro-steps a window."
        )
    return found
