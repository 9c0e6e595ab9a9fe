"""Normalisation layers: their scale's gradient is output gradient times normalised input."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from gradscope.contributions import Contribution, Dense
from gradscope.contributions.precision import working
from gradscope.errors import MixedSamplesError
from gradscope.kernels import normalized_sums, serves
from gradscope.rules.rule import Rule, owns

#: Groups whose mean is further from zero than so many standard deviations are normalised before they are multiplied.
FAR = 32.0


def _trailing(module: Module, x: Tensor, grad: Tensor, *, centred: bool) -> dict[str, Contribution]:
    """Scale and shift over the last dimensions, ``Σₜ gₜ x̂ₜ`` and ``Σₜ gₜ`` over everything between them and the samples.

    ``x̂ₜ = (xₜ - mean) / √(variance + eps)``, without the mean where it is not ``centred``. The factor of each position enters
    where positions are summed, so that ``x̂`` is never written.
    """
    n, shape = grad.shape[0], cast(Tensor, module.weight).shape
    size = shape.numel()
    x, grad = working(x).reshape(n, -1, size), working(grad).reshape(n, -1, size)
    eps = torch.finfo(x.dtype).eps if module.eps is None else cast(float, module.eps)
    shifted = module._parameters.get("bias") is not None
    if x.stride(2) == grad.stride(2) == 1 and serves(x, grad):
        scale, shift = normalized_sums(x, grad, eps, centred=centred)
        found: dict[str, Contribution] = {"weight": Dense(scale.view(n, *shape))}
        return found | {"bias": Dense(shift.view(n, *shape))} if shifted else found
    x = x - x.mean(2, keepdim=True) if centred else x
    factors = torch.linalg.vector_norm(x, dim=2).square_().div_(size).add_(eps).rsqrt_()
    met = x.mul_(grad) if centred else x * grad
    described: dict[str, Contribution] = {"weight": Dense(torch.bmm(factors.unsqueeze(1), met).reshape(n, *shape))}
    if shifted:
        described["bias"] = Dense(grad.sum(1).reshape(n, *shape))
    return described


def _channels(module: Module, normalized: Tensor, grad: Tensor) -> dict[str, Contribution]:
    """Scale and shift over dimension 1; everything after it is summed. Overwrites ``normalized``."""
    grad = working(grad)
    n, channels = grad.shape[:2]
    described: dict[str, Contribution] = {"weight": Dense(normalized.mul_(grad).reshape(n, channels, -1).sum(2))}
    if module._parameters.get("bias") is not None:
        described["bias"] = Dense(grad.reshape(n, channels, -1).sum(2))
    return described


def describe_layer_norm(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """``x̂`` over the normalised shape."""
    return _trailing(module, inputs[0], grad, centred=True)


def describe_rms_norm(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """``x / rms(x)`` over the normalised shape."""
    return _trailing(module, inputs[0], grad, centred=False)


def describe_group_norm(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """``x̂`` within each group of channels; the layer's saved ``mean`` and ``1/std`` ``[n, groups]`` may follow the input."""
    x, saved = working(inputs[0]), inputs[1:]
    if len(saved) == 2 and x.dtype == grad.dtype == saved[0].dtype and x.is_cpu and not _far_from_zero(*saved):
        return _in_one_pass(module, x, grad, *saved)
    return _channels(module, F.group_norm(x, module.num_groups, eps=module.eps), grad)  # type: ignore


def _far_from_zero(mean: Tensor, rstd: Tensor) -> bool:
    """Whether ``Σ g·x - mean·Σ g`` would lose digits that ``Σ g·x̂`` keeps."""
    return not torch.linalg.vector_norm(mean * rstd, ord=math.inf).item() < FAR


def _in_one_pass(module: Module, x: Tensor, grad: Tensor, mean: Tensor, rstd: Tensor) -> dict[str, Contribution]:
    """Scale and shift by torch's own backward of one sample whose channels are those of all samples."""
    n, channels, groups = x.shape[0], x.shape[1], mean.shape[1]
    many, positions = n * channels, x[0, 0].numel()
    # Its sums do not read the scale, but its signature does.
    scale = x.new_empty(many)
    _, weight, bias = torch.ops.aten.native_group_norm_backward(
        grad.reshape(1, many, positions), x.reshape(1, many, positions), mean.reshape(1, -1), rstd.reshape(1, -1), scale,
        1, many, positions, n * groups, [False, True, True],
    )  # fmt: skip
    described: dict[str, Contribution] = {"weight": Dense(weight.view(n, channels))}
    if module._parameters.get("bias") is not None:
        described["bias"] = Dense(bias.view(n, channels))
    return described


def saved_statistics(output: Tensor) -> tuple[Tensor, ...]:
    """``mean`` and ``1/std`` ``[n, groups]`` of a group norm's node, or nothing where another node stands there."""
    node = output.grad_fn
    if node is None or node.name() != "NativeGroupNormBackward0":
        return ()
    return node._saved_result1.detach(), node._saved_result2.detach()  # type: ignore[attr-defined]


def _running(module: Module, x: Tensor, grad: Tensor) -> dict[str, Contribution]:
    """Scale and shift by running statistics."""
    mean, factor = (
        cast(Tensor, module.running_mean),
        (cast(Tensor, module.running_var) + cast(float, module.eps)).rsqrt(),
    )
    if x.dtype == grad.dtype == mean.dtype and x.is_cpu and not _far_from_zero(mean, factor):
        every = x.shape[0], x.shape[1]
        return _in_one_pass(module, x, grad, mean.expand(every), factor.expand(every))
    shape = (1, -1, *[1] * (x.dim() - 2))
    return _channels(module, (x - mean.reshape(shape)).mul_(factor.reshape(shape)), grad)


def describe_instance_norm(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """``x̂`` within each channel of each sample, or by running statistics in eval mode."""
    x = working(inputs[0])
    fixed = module.track_running_stats and not module.training
    return _running(module, x, grad) if fixed else _channels(module, F.instance_norm(x, eps=module.eps), grad)  # type: ignore


def describe_batch_norm(module: Module, inputs: tuple[Any, ...], grad: Tensor) -> dict[str, Contribution]:
    """``x̂`` by running statistics; batch statistics make every sample's gradient depend on all others."""
    if module.training or module.running_mean is None:
        raise MixedSamplesError(
            f"{type(module).__name__} in training mode mixes the samples of a batch: put it in eval mode, replace it with "
            "GroupNorm, or pass ignore=[...]"
        )
    return _running(module, working(inputs[0]), grad)


def _normalized_dimensions(module: Module) -> int:
    return len(module.normalized_shape)  # type: ignore


_OWNS = owns("weight")
LAYER_NORM = Rule("layer norm", describe_layer_norm, "leading", _normalized_dimensions, _OWNS)
RMS_NORM = Rule("RMS norm", describe_rms_norm, "leading", _normalized_dimensions, _OWNS)
GROUP_NORM = Rule("group norm", describe_group_norm, refuse=_OWNS, saved=saved_statistics)
INSTANCE_NORM = Rule("instance norm", describe_instance_norm, refuse=_OWNS)
BATCH_NORM = Rule("batch norm", describe_batch_norm, refuse=_OWNS)
