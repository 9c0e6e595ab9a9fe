"""Contributions of every kind, each with the same written out in full."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gradscope.contributions import Contribution, Convolution, Dense, Outer, OuterBias, Scatter, sum_of_uses
from gradscope.contributions.geometry import Geometry

N = 5


def outer(
    n: int, groups: int, t: int, d: int, p: int, dtype: torch.dtype = torch.float64
) -> tuple[Contribution, Tensor]:
    inputs, grads = torch.randn(n, groups, t, d, dtype=dtype), torch.randn(n, groups, t, p, dtype=dtype)
    truth = torch.zeros(n, groups * p, d, dtype=dtype)
    for g in range(groups):
        for s in range(t):
            truth[:, g * p : (g + 1) * p] += grads[:, g, s, :, None] * inputs[:, g, s, None, :]
    return Outer(inputs, grads, torch.Size((groups * p, d))), truth


def scatter(n: int, t: int, v: int, p: int) -> tuple[Contribution, Tensor]:
    ids, grads = torch.randint(v, (n, t)), torch.randn(n, t, p, dtype=torch.float64)
    truth = torch.zeros(n, v, p, dtype=torch.float64)
    for i in range(n):
        for s in range(t):
            truth[i, ids[i, s]] += grads[i, s]
    return Scatter(ids, grads, torch.Size((v, p))), truth


def convolution(
    groups: int, stride: int, dilation: int, channels: int = 4, out: int = 6
) -> tuple[Contribution, Tensor]:
    x = torch.randn(N, channels, 9, 8, dtype=torch.float64)
    kernel = torch.zeros(out, channels // groups, 2, 3, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(x, kernel, stride=stride, dilation=dilation, groups=groups)
    grads = torch.randn_like(out)
    rows = [torch.autograd.grad((out[i] * grads[i]).sum(), kernel, retain_graph=True)[0] for i in range(N)]
    geometry = Geometry((2, 3), (stride, stride), (dilation, dilation), groups)
    return Convolution(x, grads, kernel.shape, geometry), torch.stack(rows)


def dense(*shape: int) -> tuple[Contribution, Tensor]:
    values = torch.randn(N, *shape, dtype=torch.float64)
    return Dense(values), values


def outer_bias(n: int, t: int, p: int) -> tuple[Contribution, Tensor]:
    grads = torch.randn(n, t, p, dtype=torch.float64)
    return OuterBias(grads), sum(grads[:, s] for s in range(t))


def with_bias(pair: tuple[Contribution, Tensor]) -> tuple[Contribution, Tensor]:
    pair[0].bias = OuterBias(pair[0].grads[:, 0])
    return pair


def uses(*parts: tuple[Contribution, Tensor]) -> tuple[Contribution, Tensor]:
    found, truths = zip(*parts, strict=True)
    return sum_of_uses(found), torch.stack([t.reshape(found[0].samples, *found[0].shape) for t in truths]).sum(0)


KINDS = {
    "outer, one position": lambda: outer(N, 1, 1, 4, 3),
    "outer, products": lambda: outer(N, 1, 6, 2, 3),
    "outer, Gram": lambda: outer(N, 1, 2, 9, 8),
    "outer, groups": lambda: outer(N, 3, 2, 4, 2),
    "outer, complex": lambda: outer(N, 1, 2, 9, 8, torch.complex128),
    "outer and bias, Gram": lambda: with_bias(outer(N, 1, 2, 9, 8)),
    "outer and bias, products": lambda: with_bias(outer(N, 1, 6, 2, 3)),
    "outer and bias, complex": lambda: with_bias(outer(N, 1, 2, 9, 8, torch.complex128)),
    "bias over positions": lambda: outer_bias(N, 4, 3),
    "scatter": lambda: scatter(N, 4, 3, 2),
    "scatter of nothing": lambda: scatter(N, 0, 3, 2),
    "convolution": lambda: convolution(1, 1, 1),
    "convolution, groups, stride, dilation": lambda: convolution(2, 2, 2),
    "convolution, each channel a group": lambda: convolution(4, 1, 2, out=4),
    "convolution, many channels": lambda: convolution(1, 2, 1, channels=12),
    "convolution, many channels in groups": lambda: convolution(2, 2, 1, channels=20),
    "dense vector": lambda: dense(4),
    "dense number": lambda: dense(),
    "dense matrix": lambda: dense(3, 2, 2),
    "uses of one kind": lambda: uses(outer(N, 1, 2, 4, 3), outer(N, 1, 3, 4, 3)),
    "a table and a head": lambda: uses(scatter(N, 4, 6, 3), outer(N, 1, 4, 3, 6)),
    "a head and a table": lambda: uses(outer(N, 1, 4, 3, 6), scatter(N, 2, 6, 3)),
    "two convolutions": lambda: uses(convolution(1, 1, 1), convolution(1, 1, 1)),
    "three kinds": lambda: uses(scatter(N, 4, 6, 3), outer(N, 1, 4, 3, 6), dense(6, 3)),
}
