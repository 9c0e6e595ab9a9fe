"""Each compiled kernel against products in float64, for both kinds of vectors, whatever the shapes leave over."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from gradscope.kernels import (
    ABSENT,
    Gram,
    Products,
    ShiftedGram,
    Walk,
    depthwise_gradients,
    loaded,
    normalized_sums,
    ratio_sums,
    readings,
    rows_read,
    serves,
    variance_and_signal,
)

pytestmark = pytest.mark.skipif(bool(ABSENT), reason=ABSENT)

TOLERANCE = {torch.float32: 2e-6, torch.float64: 2e-14}
VECTORS = [vector for vector in (32, 64) if vector <= loaded.VECTOR]

#: n, T, d, p: below, at and above the sizes of tiles and vectors, and more rows than a thread works on at once.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (3, 17, 33, 9),
    (4, 128, 64, 100),
    (5, 40, 31, 65),
    (2, 64, 16, 8),
    (3, 9, 7, 300),
]


@pytest.fixture(params=VECTORS, ids=lambda vector: f"{8 * vector} bits")
def vector(request):
    return request.param


@pytest.fixture(params=list(TOLERANCE), ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    return request.param


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def anything(size, dtype):
    """Memory that nobody may read before it was written."""
    return torch.full((size,) if isinstance(size, int) else size, float("nan"), dtype=dtype)


def assert_close(found, expected, scale=None):
    scale = expected.abs().max() if scale is None else scale
    error = float(((found.double() - expected).abs() / scale).max())
    assert error <= TOLERANCE[found.dtype] if found.dtype in TOLERANCE else False, error


def check(kernel, gradients, grads, left, right, *, factors=False):
    """All that a kernel for products gives, against gradients ``[n, p, columns]``."""
    n, p, columns = gradients.shape
    dtype = left.dtype
    total, moment, sums = (anything(shape, dtype) for shape in ((p, columns), (p, columns), (n, p)))
    squares, probes = kernel.run(
        anything(kernel.scratch, dtype),
        total=total,
        moment=moment,
        directions=(left, right),
        factors=factors,
        sums=sums,
    )
    lengths = gradients.square().sum((1, 2))
    assert_close(squares.to(dtype), lengths, lengths)
    assert_close(total, gradients.sum(0), gradients.abs().sum(0).max())
    assert_close(moment, gradients.square().sum(0))
    along = torch.einsum("p,npc,c->n", left.double(), gradients, right.double())
    assert_close(probes.to(dtype), along, lengths.sqrt() * left.double().norm() * right.double().norm())
    assert_close(sums, grads.double(), grads.double().abs().max() * 4)
    alone, nothing = kernel.run(anything(kernel.scratch, dtype))
    assert torch.equal(alone, squares)
    assert nothing is None


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_of_positions(shape, dtype, vector):
    n, positions, d, p = shape
    inputs, grads = torch.randn(n, positions, d, dtype=dtype), torch.randn(n, positions, p, dtype=dtype)
    left, right = torch.randn(p, dtype=dtype), torch.randn(d, dtype=dtype)
    gradients = torch.bmm(grads.double().mT, inputs.double())
    check(Products(inputs, grads, vector=vector), gradients, grads.sum(1), left, right)
    check(Products(inputs, grads, vector=vector), gradients, grads.sum(1), left, right, factors=True)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gram_sums(shape, dtype, vector):
    n, positions, d, p = shape
    inputs, grads = torch.randn(n, positions, d, dtype=dtype), torch.randn(n, positions, p, dtype=dtype)
    left, right, sums = torch.randn(p, dtype=dtype), torch.randn(d, dtype=dtype), anything((n, p), dtype)
    gradients = torch.bmm(grads.double().mT, inputs.double())
    kernel = Gram(inputs, grads, vector=vector)
    found, lost = kernel.run(anything(kernel.scratch, dtype), directions=(left, right), sums=sums)
    squares, uncancelled, probes = found
    assert lost == 0
    lengths = gradients.square().sum((1, 2))
    assert_close(squares.to(dtype), lengths, lengths)
    expected = (inputs.double().norm(dim=2) * grads.double().norm(dim=2)).sum(1).square()
    assert_close(uncancelled.to(dtype), expected, expected)
    along = torch.einsum("p,npd,d->n", left.double(), gradients, right.double())
    assert_close(probes.to(dtype), along, lengths.sqrt() * left.double().norm() * right.double().norm())
    assert_close(sums, grads.double().sum(1), grads.double().abs().sum(1).max())
    again = anything((n, p), dtype)
    assert torch.equal(kernel.look((left, right), again), probes)
    assert torch.equal(again, sums)
    alone, lost = kernel.run(anything(kernel.scratch, dtype), least=math.inf)
    assert torch.equal(alone[:2], found[:2])
    assert lost == n


WALKS = {
    "few channels": ((2, 3, 9, 9), 8, Walk((3, 3), (1, 1), (1, 1), (1, 1))),
    "few channels, stride": ((2, 3, 21, 20), 20, Walk((7, 7), (2, 2), (1, 1), (3, 3))),
    "a single channel": ((3, 1, 6, 5), 4, Walk((3, 2), (1, 1), (1, 1), (0, 1))),
    "blocks of channels": ((3, 64, 8, 8), 40, Walk((3, 3), (1, 1), (1, 1), (1, 1))),
    "blocks that channels do not fill": ((2, 45, 7, 9), 20, Walk((3, 2), (2, 1), (1, 1), (1, 0))),
    "spread kernel": ((2, 32, 10, 11), 70, Walk((3, 3), (2, 1), (2, 3), (1, 2))),
    "one by one": ((4, 48, 6, 6), 5, Walk((1, 1), (1, 1), (1, 1), (0, 0))),
    "one by one, stride": ((4, 48, 7, 6), 5, Walk((1, 1), (2, 3), (1, 1), (0, 0))),
    "one line": ((2, 32, 1, 30), 9, Walk((1, 5), (1, 2), (1, 1), (0, 2))),
    "a single position": ((3, 40, 3, 3), 6, Walk((3, 3), (1, 1), (1, 1), (0, 0))),
}


def patches_of(size, p, walk, layout, dtype):
    """An image, gradients of a convolution's output, and each sample's gradient of the weight ``[n, p, columns]``."""
    n, channels = size[:2]
    memory = torch.contiguous_format if layout == "channels first" else torch.channels_last
    image = torch.randn(size, dtype=dtype).contiguous(memory_format=memory)
    weight = torch.randn(p, channels, *walk.kernel, dtype=dtype)
    how = {"stride": walk.stride, "padding": walk.padding, "dilation": walk.dilation}
    grads = torch.randn_like(F.conv2d(image, weight, **how)).contiguous(memory_format=memory)
    each = [
        torch.nn.grad.conv2d_weight(x[None].double(), weight.shape, g[None].double(), **how)
        for x, g in zip(image, grads, strict=True)
    ]
    return image, grads, torch.stack(each).reshape(n, p, -1)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
@pytest.mark.parametrize("name", WALKS)
def test_products_of_patches(name, layout, dtype, vector):
    size, p, walk = WALKS[name]
    image, grads, gradients = patches_of(size, p, walk, layout, dtype)
    left, right = torch.randn(p, dtype=dtype), torch.randn(gradients.shape[2], dtype=dtype)
    kernel = Products(image, grads, walk, vector=vector)
    check(kernel, gradients, grads.sum((2, 3)), left, right)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
@pytest.mark.parametrize("name", WALKS)
def test_gram_sums_of_shifted_pixels(name, layout, dtype, vector):
    size, p, walk = WALKS[name]
    image, grads, gradients = patches_of(size, p, walk, layout, dtype)
    kernel = ShiftedGram(image, grads, walk, vector=vector)
    squares, uncancelled = kernel.run(anything(kernel.scratch, dtype))
    lengths = gradients.square().sum((1, 2))
    assert_close(squares.to(dtype), lengths, lengths)
    left, right = torch.randn(p, dtype=dtype), torch.randn(gradients.shape[2], dtype=dtype)
    along = torch.einsum("p,npc,c->n", left.double(), gradients, right.double())
    size = lengths.sqrt() * left.double().norm() * right.double().norm()
    assert_close(kernel.look(left, right).to(dtype), along, size)
    ones = {"stride": walk.stride, "padding": walk.padding, "dilation": walk.dilation}
    across = F.conv2d(image.double().square().sum(1, keepdim=True), torch.ones(1, 1, *walk.kernel).double(), **ones)
    expected = (across[:, 0] * grads.double().square().sum(1)).sqrt().sum((1, 2)).square()
    assert_close(uncancelled.to(dtype), expected, expected)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("some", [[4], [0, 3], [6, 1, 2], [5, 3, 2, 1, 0]], ids=len)
def test_samples_that_are_chosen(some, dtype, vector):
    chosen = torch.tensor(some)
    inputs, grads = torch.randn(7, 70, 12, dtype=dtype), torch.randn(7, 70, 21, dtype=dtype)
    left, right, sums = torch.randn(21, dtype=dtype), torch.randn(12, dtype=dtype), anything((7, 21), dtype)
    whole = Gram(inputs, grads, vector=vector)
    expected = whole.run(anything(whole.scratch, dtype), directions=(left, right))[0]
    rest = torch.ones(7, dtype=torch.bool).index_fill_(0, chosen, 0)
    gram = Gram(inputs, grads, len(some), vector)
    found, lost = gram.run(
        anything(gram.scratch, dtype), directions=(left, right), sums=sums, chosen=chosen, least=math.inf
    )
    assert torch.equal(found[:, chosen], expected[:, chosen])
    assert torch.equal(found[2], expected[2])
    assert found[:2, rest].isnan().all()
    assert lost == len(some)
    assert_close(sums, grads.double().sum(1), grads.double().abs().sum(1).max())
    products = Products(inputs, grads, count=len(some), vector=vector)
    moment = anything((21, 12), dtype)
    squares = products.run(anything(products.scratch, dtype), moment=moment, chosen=chosen)[0]
    gradients = torch.bmm(grads.double().mT, inputs.double())[chosen]
    assert_close(squares.to(dtype), gradients.square().sum((1, 2)), gradients.square().sum())
    assert_close(moment, gradients.square().sum(0), gradients.square().sum(0).max())


def test_many_threads_take_no_more_memory_than_one_sample_each_where_samples_do_not_fit_side_by_side():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(16)
        # 20 samples of 0.3 million elements: too many at once, and no multiple of 16.
        kernel = Gram(torch.empty(20, 128, 512), torch.empty(20, 128, 2048))
        few = Gram(torch.empty(3, 128, 512), torch.empty(3, 128, 2048))
    finally:
        torch.set_num_threads(before)
    assert kernel.threads == 16
    assert 16 * 128 * 2560 <= kernel.scratch < 17 * 128 * 2560
    assert few.threads == min(16, 3 * 128 * 4 // (2 * loaded.VECTOR))
    assert few.scratch < 4 * 128 * 2560


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("some", [[2], [3, 0], [1, 3, 2]], ids=len)
@pytest.mark.parametrize("name", ["few channels", "blocks of channels", "one by one"])
def test_samples_of_convolutions_that_are_chosen(name, some, dtype, vector):
    (_, *image), p, walk = WALKS[name]
    x, g, gradients = patches_of((4, *image), p, walk, "channels first", dtype)
    chosen = torch.tensor(some)
    lengths = gradients[chosen].square().sum((1, 2))
    for kind in (Products, ShiftedGram):
        kernel = kind(x, g, walk, len(some), vector)
        found = kernel.run(anything(kernel.scratch, dtype), chosen=chosen)[0]
        assert_close(found.to(dtype), lengths, lengths)


def test_factors_that_lie_apart(dtype, vector):
    n, positions, d, p = 3, 10, 12, 9
    inputs = torch.randn(positions, n, 2 * d, dtype=dtype)[:, :, 3 : d + 3].transpose(0, 1)
    grads = torch.randn(n, p, positions, dtype=dtype).mT
    same = inputs[:1].expand(n, positions, d)
    for factor in (inputs, same):
        gradients = torch.bmm(grads.double().mT, factor.double())
        lengths = gradients.square().sum((1, 2))
        products, gram = Products(factor, grads, vector=vector), Gram(factor, grads, vector=vector)
        assert_close(products.run(anything(products.scratch, dtype))[0].to(dtype), lengths, lengths)
        assert_close(gram.run(anything(gram.scratch, dtype))[0][0].to(dtype), lengths, lengths)


@pytest.mark.usefixtures("_threads")
def test_readings(dtype, vector):
    matrices = [
        torch.randn(size, dtype=dtype) for size in ((70, 900), (5,), (4, 3, 2), (1,), (3, 1), (2, 70_000), (9000,))
    ]
    lefts = [torch.randn(len(matrix), dtype=dtype) for matrix in matrices]
    rights = [torch.randn(max(1, matrix[0].numel()), dtype=dtype) for matrix in matrices]
    rights = [right if len(right) > 1 else torch.ones_like(right) for right in rights]
    copies = [anything(matrix.shape, dtype) for matrix in matrices]
    figures = readings(matrices, lefts, rights, copies, vector)
    assert figures.equal(readings(matrices, lefts, rights, vector=vector))
    assert all(map(torch.equal, copies, matrices))
    for found, matrix, left, right in zip(figures.T, matrices, lefts, rights, strict=True):
        wide = matrix.double().reshape(len(left), -1)
        square, along = wide.square().sum(), left.double() @ wide @ right.double()
        assert_close(found[0].to(dtype), square)
        assert_close(found[1].to(dtype), along, wide.norm() * left.double().norm() * right.double().norm())


@pytest.mark.parametrize(
    "matrix",
    [
        torch.randn(6, 5).T,
        torch.randn(5, 6).bfloat16(),
        torch.randn(5, 6).double(),
        torch.empty(0, 6),
        torch.randn(5, 6, device="meta"),
        torch.nn.Parameter(torch.randn(5, 6)),
    ],
    ids=["turned", "half", "double", "empty", "meta", "subclass"],
)
def test_matrices_that_the_kernel_cannot_read_are_left_alone(matrix):
    copies = [anything((5, 6), torch.float32) for _ in range(2)]
    lefts, rights = [torch.ones(5)] * 2, [torch.ones(6)] * 2
    assert readings([torch.randn(5, 6), matrix], lefts, rights, copies) is None
    assert all(copy.isnan().all() for copy in copies)


def test_rows(dtype, vector):
    first, second = torch.randn(5, 2100, dtype=dtype)[:, 7:], torch.randn(5, 19, dtype=dtype)
    along_first, along_second = torch.randn(2093, dtype=dtype), torch.randn(19, dtype=dtype)
    squares = (anything(first.shape, dtype), anything(second.shape, dtype))
    memory = anything((3, 4, 5), dtype)
    rows_read(first, along_first, second, along_second, memory, 1, squares, vector)
    assert all(map(torch.equal, squares, (first.square(), second.square())))
    rows_read(first, along_first, second, along_second, memory, 2, vector=vector)
    untouched, found, alone = memory
    assert untouched.isnan().all()
    assert_close(alone, found, found.abs().max())
    for rows, direction, (lengths, along) in ((first, along_first, found[:2]), (second, along_second, found[2:])):
        assert_close(lengths, rows.double().norm(dim=1))
        assert_close(along, rows.double() @ direction.double(), rows.double().norm(dim=1).max() * direction.norm())


@pytest.mark.parametrize(
    "rows",
    [
        torch.randn(6, 5).T,
        torch.randn(5, 6).bfloat16(),
        torch.randn(5, 6).double(),
        torch.randn(5, 6, 1),
        torch.randn(5, 6, device="meta"),
        torch.nn.Parameter(torch.randn(5, 6)),
    ],
    ids=["turned", "half", "double", "three dimensions", "meta", "subclass"],
)
def test_rows_that_the_kernel_cannot_read_are_left_alone(rows):
    memory, other = anything((1, 4, 5), torch.float32), torch.randn(5, 7)
    assert not rows_read(other, torch.ones(7), rows, torch.ones(6), memory, 0)
    assert memory.isnan().all()


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("size", [(1,), (3, 7), (260, 300)], ids=str)
def test_variance_and_signal_of_each_element(size, dtype, vector):
    mean, own = torch.randn(size, dtype=dtype), torch.rand(size, dtype=dtype)
    variance, signal = variance_and_signal(mean, own, 0.125, 8, vector)
    squares, sums = mean.double().square(), own.double()
    assert_close(variance, 8 * (sums - 0.125 * squares) / 0.875, 8 * (sums + squares))
    assert_close(signal, (squares - sums) / 0.875, sums + squares)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("size", [(1,), (3, 7), (260, 300)], ids=str)
def test_ratios(size, dtype, vector):
    below, above = torch.rand(size, dtype=dtype) + 0.1, torch.randn(size, dtype=dtype)
    ratios = above.double() / below.double()
    total, count = ratio_sums(below, above, vector)
    assert count == below.numel()
    assert abs(total - float(ratios.sum())) <= 1e-12 * float(ratios.abs().sum())
    below.view(-1)[0], above.view(-1)[0] = 0, 0
    total, count = ratio_sums(below, above, vector)
    assert count == below.numel() - 1
    assert abs(total - float(ratios.view(-1)[1:].sum())) <= 1e-12 * float(ratios.abs().sum())
    above.view(-1)[0] = 1
    assert ratio_sums(below, above, vector) == (math.inf, below.numel())
    above.view(-1)[-1] = math.nan
    assert math.isnan(ratio_sums(below, above, vector)[0])


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("centred", [True, False], ids=["layer norm", "RMS norm"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (3, 9, 40), (4, 5, 129)], ids=str)
def test_sums_of_normalised_rows(shape, centred, dtype, vector):
    rows, grads = torch.randn(shape, dtype=dtype) + 3, torch.randn(shape, dtype=dtype)
    scale, shift = normalized_sums(rows, grads, 1e-5, centred=centred, vector=vector)
    wide = rows.double()
    wide = wide - wide.mean(2, keepdim=True) if centred else wide
    normalised = wide / (wide.square().mean(2, keepdim=True) + 1e-5).sqrt()
    assert_close(scale, (grads.double() * normalised).sum(1), grads.double().abs().sum(1).max())
    assert_close(shift, grads.double().sum(1), grads.double().abs().sum(1).max())


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "turned"])
@pytest.mark.parametrize(
    ("channels", "filters", "size", "walk"),
    [
        (1, 1, (1, 1), Walk((1, 1), (1, 1), (1, 1), (0, 0))),
        (3, 1, (9, 7), Walk((3, 3), (1, 1), (1, 1), (1, 1))),
        (2, 3, (6, 11), Walk((7, 5), (1, 1), (1, 1), (3, 2))),
        (4, 2, (17, 13), Walk((3, 4), (2, 3), (2, 1), (0, 5))),
        (2, 1, (1, 40), Walk((1, 9), (1, 2), (1, 3), (0, 8))),
        (5, 1, (2, 2), Walk((7, 7), (1, 1), (1, 1), (3, 3))),
    ],
    ids=str,
)
def test_filters_that_read_one_channel_each(channels, filters, size, walk, layout, dtype, vector):
    x = torch.randn(3, channels, *size, dtype=dtype)
    weight = torch.randn(channels * filters, 1, *walk.kernel, dtype=dtype)
    settings = (walk.stride, walk.padding, walk.dilation, channels)
    g = torch.randn_like(torch.nn.functional.conv2d(x, weight, None, *settings))
    if layout == "channels last":
        x, g = (one.contiguous(memory_format=torch.channels_last) for one in (x, g))
    elif layout == "turned":
        x, g = (one.transpose(0, 3).contiguous().transpose(0, 3) for one in (x, g))
    found = depthwise_gradients(x, g, walk, vector=vector)
    for i in range(3):
        wide = x[i : i + 1].double(), g[i : i + 1].double()
        expected = torch.nn.grad.conv2d_weight(wide[0], weight.shape, wide[1], *settings).flatten(1)
        assert_close(found[i], expected, expected.abs().max() + 1)


def test_figures_of_other_thread_counts_are_the_same_to_rounding(dtype):
    inputs, grads = torch.randn(4, 50, 40, dtype=dtype), torch.randn(4, 50, 200, dtype=dtype)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        kernel = Products(inputs, grads)
        found.append(kernel.run(anything(kernel.scratch, dtype))[0])
    torch.set_num_threads(1)
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=0)


def test_what_they_cannot_read_is_left_to_torch():
    x = torch.randn(3, 4)
    assert serves(x, x)
    assert not serves(x, x.double())
    assert not serves(x.bfloat16())
    assert not serves(torch.randn(3, dtype=torch.complex64))
    assert not serves(torch.randn(3, dtype=torch.complex64).conj().imag)
    assert not serves(x.to("meta"))
    assert not serves(x.as_subclass(torch.nn.Parameter))
    assert not serves(torch.randn(3, 0))
    assert not serves(x.to_sparse())
    seen = []
    torch.func.vmap(lambda row: (seen.append(serves(row)), row)[1])(x)
    assert seen == [False]


def test_what_does_not_fit_together_is_refused_before_anything_is_read():
    x, g, image = torch.randn(2, 5, 6), torch.randn(2, 5, 7), torch.randn(2, 3, 8, 8)
    walk = Walk((3, 3), (1, 1), (1, 1), (0, 0))
    scratch = torch.empty(1 << 16)
    rows, memory = (x[0], torch.ones(6), g[0], torch.ones(7)), torch.empty(1, 4, 5)
    for wrong in (
        lambda: Products(x, g[:, :4]),
        lambda: Gram(x, g[:1]),
        lambda: Products(image, torch.randn(2, 4, 7, 6), walk),
        lambda: ShiftedGram(image, torch.randn(2, 4, 7, 6), walk),
        lambda: depthwise_gradients(image, torch.randn(2, 3, 7, 6), walk),
        lambda: depthwise_gradients(image, torch.randn(2, 4, 6, 6), walk),
        lambda: depthwise_gradients(image, torch.randn(1, 3, 6, 6), walk),
        lambda: depthwise_gradients(image, torch.randn(2, 3, 6, 6).double(), walk),
        lambda: depthwise_gradients(image[0], torch.randn(3, 6, 6), walk),
        lambda: Products(x, g).run(scratch[:10]),
        lambda: Gram(x, g).run(scratch[:10]),
        lambda: Gram(x, g, 1).run(scratch),
        lambda: Gram(x, g, 1).run(scratch, chosen=torch.tensor([0, 1])),
        lambda: Gram(x, g, 1).run(scratch, chosen=torch.tensor([2])),
        lambda: Gram(x, g, 1).run(scratch, chosen=torch.tensor([-1])),
        lambda: Gram(x, g, 1).run(scratch, chosen=torch.tensor([1.0])),
        lambda: Products(x, g, count=1).run(scratch, chosen=torch.tensor([2])),
        lambda: ShiftedGram(image, torch.randn(2, 4, 6, 6), walk, 1).run(scratch, torch.tensor([2])),
        lambda: ShiftedGram(image, torch.randn(2, 4, 6, 6), walk).run(scratch[:10]),
        lambda: ShiftedGram(image, torch.randn(2, 4, 6, 6), walk).look(torch.ones(4), torch.ones(26)),
        lambda: Products(x, g).run(scratch, total=torch.empty(6, 6)),
        lambda: Products(x, g).run(scratch, moment=torch.empty(6, 7).T),
        lambda: Products(x, g).run(scratch, directions=(torch.ones(7), torch.ones(5))),
        lambda: Gram(x, g).look((torch.ones(7), torch.ones(6).double())),
        lambda: Gram(x, g).run(scratch, directions=(torch.ones(7), torch.ones(6)), sums=torch.empty(2, 6)),
        lambda: readings([x], [torch.ones(2)], [torch.ones(29)]),
        lambda: readings([x], [torch.ones(2)], [torch.ones(30).double()]),
        lambda: readings([x], [torch.ones(2)], [torch.ones(60)[::2]]),
        lambda: readings([x], [torch.ones(2), torch.ones(2)], [torch.ones(30)]),
        lambda: readings([x], [torch.ones(0)], [torch.ones(30)]),
        lambda: readings([x], [torch.ones(2)], [torch.ones(30, device="meta")]),
        lambda: Gram(x, g).look((torch.ones(7, device="meta"), torch.ones(6))),
        lambda: rows_read(rows[0], torch.ones(6, device="meta"), *rows[2:], memory, 0),
        lambda: readings([x], [torch.ones(2)], [torch.ones(30)], [torch.empty(2, 30).double()]),
        lambda: readings([x], [torch.ones(2)], [torch.ones(30)], [torch.empty(2, 29)]),
        lambda: rows_read(*rows, memory, 0, (torch.empty(5, 6), torch.empty(7, 5).T)),
        lambda: rows_read(*rows, memory, 1),
        lambda: rows_read(*rows, memory, -1),
        lambda: rows_read(*rows, memory.double(), 0),
        lambda: rows_read(*rows, memory[..., ::2], 0),
        lambda: rows_read(rows[0], torch.ones(7), *rows[2:], memory, 0),
        lambda: rows_read(rows[0], rows[1], g[0, :4], rows[3], memory, 0),
        lambda: variance_and_signal(x, g, 0.5, 2),
        lambda: variance_and_signal(x, x.transpose(0, 1), 0.5, 2),
        lambda: ratio_sums(x, x.double()),
    ):
        with pytest.raises(ValueError, match=r"do not fit together|was chosen of 2"):
            wrong()


def test_not_a_number_stays_one(dtype):
    inputs, grads = torch.randn(2, 5, 6, dtype=dtype), torch.randn(2, 5, 7, dtype=dtype)
    inputs[1, 2, 3] = float("nan")
    for kernel in (Products(inputs, grads), Gram(inputs, grads)):
        squares = kernel.run(anything(kernel.scratch, dtype))[0]
        squares = squares[0] if squares.dim() > 1 else squares
        assert squares[0].isfinite()
        assert squares[1].isnan()


def test_switched_off_torch_does_the_work():
    code = "from gradscope.kernels import ABSENT, serves; import torch; print(ABSENT, serves(torch.randn(2)))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"GRADSCOPE_KERNELS": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "switched off by GRADSCOPE_KERNELS=0 False"
