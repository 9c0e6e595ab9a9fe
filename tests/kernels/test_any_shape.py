"""Whatever the shapes, strides and settings: kernels, forced, against gradients in full; 200 draws."""

import random

import pytest
import torch
import torch.nn.functional as F

from gradscope.contributions import Convolution, Outer, Probe
from gradscope.contributions.choice import Forced
from gradscope.contributions.fused import FusedConvolution, FusedOuter
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.outer_bias import OuterBias
from gradscope.contributions.workspace import Workspace
from gradscope.kernels import ABSENT

pytestmark = pytest.mark.skipif(bool(ABSENT), reason=ABSENT)


def laid_out(draw, factor):
    """The same numbers in memory that is laid out in one of several ways."""
    way = draw.randrange(4)
    if way == 1:
        return factor.transpose(0, -1).contiguous().transpose(0, -1)
    if way == 2:
        return torch.cat([factor, factor], -1)[..., : factor.shape[-1]]
    if way == 3 and factor.dim() == 4:
        return factor.contiguous(memory_format=torch.channels_last)
    return factor


def outer_products(draw):
    n, positions = draw.randint(1, 6), draw.choice([1, 2, 7, 31, 32, 33, 64, 100])
    d, p = draw.choice([1, 3, 8, 31, 33, 64, 130, 600, 1100]), draw.choice([1, 2, 8, 9, 63, 65, 127, 129, 300])
    inputs = laid_out(draw, torch.randn(n, positions, d, dtype=torch.float64))
    grads = laid_out(draw, torch.randn(n, positions, p, dtype=torch.float64))
    outer = Outer(inputs[:, None], grads[:, None], torch.Size((p, d)))
    outer.bias = OuterBias(grads)
    return outer, FusedOuter(outer), torch.bmm(grads.mT, inputs), ("Gram kernel", "product kernel")


def convolutions(draw):
    n, dims = draw.randint(1, 6), draw.choice([1, 2, 2])
    channels, p = draw.choice([1, 2, 3, 5, 16, 31, 32, 33, 64, 70]), draw.choice([1, 3, 8, 17, 64, 70])
    kernel, stride, dilation, padding = (
        tuple(draw.randint(least, most) for _ in range(dims)) for least, most in ((1, 4), (1, 3), (1, 2), (0, 3))
    )
    size = [
        max(draw.randint(1, 19), (k - 1) * spread + 1 - 2 * zeros)
        for k, spread, zeros in zip(kernel, dilation, padding, strict=True)
    ]
    x = laid_out(draw, torch.randn(n, channels, *size, dtype=torch.float64))
    weight = torch.randn(p, channels, *kernel, dtype=torch.float64)
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    forward, backward = (
        (F.conv1d, torch.nn.grad.conv1d_weight) if dims == 1 else (F.conv2d, torch.nn.grad.conv2d_weight)
    )
    grads = laid_out(draw, torch.randn_like(forward(x, weight, **how)))
    geometry = Geometry(kernel, stride, dilation, 1, padding if any(padding) else ())
    convolution = Convolution(x, grads, weight.shape, geometry)
    each = [backward(x[i : i + 1], weight.shape, grads[i : i + 1], **how) for i in range(n)]
    ways = ("product kernel", "shifted Gram kernel")
    return convolution, FusedConvolution(convolution), torch.stack(each).reshape(n, p, -1), ways


def assert_figures(found, probe, gradients):
    lengths = gradients.square().sum((1, 2))
    torch.testing.assert_close(found.squares, lengths, rtol=1e-11, atol=1e-12 * float(lengths.max()))
    if found.second_moment is not None:
        second = gradients.square().sum(0)
        torch.testing.assert_close(found.second_moment.reshape(second.shape), second, rtol=1e-11, atol=1e-12)
    if probe is not None:
        pairs = zip(probe.lefts, probe.rights, strict=True)
        along = torch.stack([(gradients @ right) @ left for left, right in pairs], 1)
        size = float(lengths.max().sqrt() * probe.left.norm() * probe.right.norm())
        torch.testing.assert_close(found.probes, along, rtol=0, atol=1e-13 * size)


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("build", [outer_products, convolutions])
def test_kernels_give_what_the_gradients_give(build, seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(draw.choice([1, 2, 3, 5]))
    try:
        contribution, fused, gradients, ways = build(draw)
        probes = Probe.draw(torch.empty(contribution.shape, dtype=torch.float64), torch.Generator().manual_seed(seed))
        for way in ways:
            for moments in (False, True):
                probe = draw.choice([None, probes, probes.parts[seed % 9]])
                workspace = Workspace(Forced(way))
                assert_figures(contribution.figures(probe, moments=moments, workspace=workspace), probe, gradients)
        probe = draw.choice([None, probes, probes.parts[seed % 9]])
        assert_figures(fused.figures(probe, moments=draw.random() < 0.5, workspace=Workspace()), probe, gradients)
        assert fused.summed is not None
        total = gradients.sum(0)
        torch.testing.assert_close(fused.summed.reshape(total.shape), total, rtol=1e-11, atol=1e-12)
    finally:
        torch.set_num_threads(1)
