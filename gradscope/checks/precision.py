"""The same objects in float64, where rounding can no longer be mistaken for an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as tree


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float64 or complex128; integers and booleans as they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


def widen(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Exchange the values of parameters, buffers and optimizer states for float64 ones, inside the same objects.

    The user's step holds these objects, so a copy of the model would not do. Undone by ``Snapshot.restore``.
    """
    for parameter in model.parameters():
        parameter.grad = None
        parameter.data = wide(parameter.data)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = wide(buffer)
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() > 0:
                    state[key] = wide(value)


def widened(batch: Any) -> Any:
    """The batch with its floating-point tensors in float64."""
    return tree.tree_map(lambda leaf: wide(leaf) if isinstance(leaf, Tensor) else leaf, batch)


def is_wide(model: nn.Module) -> bool:
    """Whether every parameter has float64 values already."""
    return all(p.dtype in (torch.float64, torch.complex128) for p in model.parameters())


def rounding(model: nn.Module) -> float:
    """Unit roundoff of the coarsest parameter: 2⁻⁸ for bfloat16, 2⁻²⁴ for float32."""
    return max(torch.finfo(p.dtype).eps / 2 for p in model.parameters())
