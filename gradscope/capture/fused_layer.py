"""The layers whose weight gradient can be built sample by sample: what their backward is, and when that pays."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from torch.nn.modules.conv import Conv1d, Conv2d, Conv3d, _ConvNd

from gradscope.kernels import serves

#: Gradients of input, weight and bias; None where nobody asked.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]

#: Half precisions are left to autograd: what overflows there must go on to overflow.
DTYPES = (torch.float32, torch.float64)

#: What adding up and squaring one element of a product costs, and one sample's calls, in multiply-adds of a product of matrices.
_REDUCE, _CALLS = 30.0, 6.5e5

#: Convolutions with fewer output positions have Gram matrices so small that nothing is saved.
_FEW_POSITIONS = 80

#: The same where kernels build the products: what they add up is in registers.
_KERNEL_REDUCE, _KERNEL_CALLS, _KERNEL_FEW_POSITIONS = 6.0, 1e5, 40


def can_be_fused(module: Module) -> bool:
    """Whether a module of this type and these settings is one whose backward is known here."""
    if isinstance(module, (Conv1d, Conv2d, Conv3d)):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, Linear)


def pays(module: Module, x: Tensor, output: Tensor, samples: int, *, moments: bool) -> bool:
    """Whether one product for both is cheaper than the weight gradient and the figures apart.

    With a single position norms are those of the two factors, and second moments one product of squares. Few positions have Gram
    matrices smaller than the gradient.
    """
    compiled = serves(output)
    if isinstance(module, _ConvNd):
        return moments or prod(output.shape[2:]) > (_KERNEL_FEW_POSITIONS if compiled else _FEW_POSITIONS)
    d, p = x.shape[-1], output.shape[-1]
    positions = output.numel() // (samples * p)
    if positions == 1 or moments:
        return positions > 1
    reduce, calls = (_KERNEL_REDUCE, _KERNEL_CALLS) if compiled else (_REDUCE, _CALLS)
    return positions * positions * (d + p) > reduce * d * p + calls


def plain_gradients(
    module: Module, grad: Tensor, x: Tensor, weight: Tensor | None, wanted: tuple[bool, bool, bool]
) -> Gradients:
    """What autograd computes, of torch's own differentiable operators.

    Args:
        module: the layer.
        grad: gradient of its output.
        x: its input.
        weight: its weight; None where the input's gradient is not asked for.
        wanted: whether those of input, weight and bias are asked for.
    """
    if isinstance(module, _ConvNd):
        return _convolution(module, grad, x, weight, wanted)
    rows = grad.reshape(-1, grad.shape[-1])
    return (
        grad @ weight if wanted[0] and weight is not None else None,
        rows.mT @ x.reshape(-1, x.shape[-1]) if wanted[1] else None,
        rows.sum(0) if wanted[2] else None,
    )


def _convolution(
    module: _ConvNd, grad: Tensor, x: Tensor, weight: Tensor | None, wanted: tuple[bool, bool, bool]
) -> Gradients:
    like = weight if weight is not None else x.new_empty(module.weight.shape)
    none = [0] * len(module.kernel_size)
    found: Any = (None, None)
    if wanted[0] or wanted[1]:
        found = torch.ops.aten.convolution_backward(
            grad, x, like, None, module.stride, module.padding, module.dilation, False, none, module.groups,
            [wanted[0], wanted[1], False],
        )  # fmt: skip
    bias = grad.sum((0, *range(2, grad.dim()))) if wanted[2] else None
    return (found[0] if wanted[0] else None, found[1] if wanted[1] else None, bias)


def is_plain(tensor: Any) -> bool:
    """Whether a tensor is of torch's own dense kind, and of a precision that is fused."""
    return type(tensor) in (Tensor, Parameter) and tensor.layout is torch.strided and tensor.dtype in DTYPES
