"""Squares keep their digits where the obvious way loses them."""

import pytest
import torch

from gradscope.contributions import Convolution, Outer, Probe, Scatter, sum_of_uses
from gradscope.contributions.choice import Forced
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.outer_norms import by_gram, by_products, by_vectors
from gradscope.contributions.precision import row_squares, squared_norm
from gradscope.contributions.workspace import Workspace


def test_the_three_algorithms_agree():
    inputs, grads = torch.randn(4, 2, 1, 5).double(), torch.randn(4, 2, 1, 3).double()
    expected = by_products(inputs, grads, None).squares
    torch.testing.assert_close(by_vectors(inputs, grads), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(by_gram(inputs, grads), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-9)])
def test_gram_norms_of_positions_that_cancel_are_computed_again(dtype, tolerance):
    """A hundred positions whose sum is a thousandth of their size: in float32 the Gram sum alone is 10 × off."""
    torch.manual_seed(0)
    base = torch.randn(3, 1, 1, 64, dtype=torch.float64)
    inputs = base.repeat(1, 1, 100, 1) + 1e-3 * torch.randn(3, 1, 100, 64, dtype=torch.float64)
    grads = torch.randn(3, 1, 1, 64, dtype=torch.float64).repeat(1, 1, 100, 1)
    grads[:, :, 1::2] *= -1
    inputs, grads = inputs.to(dtype), grads.to(dtype)
    truth = (grads.double().transpose(2, 3) @ inputs.double()).square().sum((1, 2, 3))
    assert inputs.shape[2] * 128 > 64 * 64  # products would be chosen; Gram is asked for
    torch.testing.assert_close(by_gram(inputs, grads), truth, rtol=tolerance, atol=0)
    torch.testing.assert_close(
        Outer(inputs, grads, torch.Size((64, 64))).squared_norms(), truth, rtol=tolerance, atol=0
    )


@pytest.mark.parametrize("share", [1e-3, 1e-2, 1e-1, 0.3, 1.0])
@pytest.mark.parametrize("way", ["Gram", "Gram kernel", "product kernel", "shifted Gram kernel"])
def test_norms_keep_their_digits_where_positions_cancel_in_part(way, share):
    """Positions have a mean in common that their gradients cancel: below, at and above what Gram sums can be trusted with."""
    torch.manual_seed(0)
    inputs, grads = 1 + share * torch.randn(3, 64, 40), torch.randn(3, 64, 48)
    grads = grads - grads.mean(1, keepdim=True) * (1 - share)
    truth = torch.bmm(grads.double().mT, inputs.double()).square().sum((1, 2))
    contribution = Outer(inputs[:, None], grads[:, None], torch.Size((48, 40)))
    if way == "shifted Gram kernel":
        images = (factor.mT.unflatten(2, (8, 8)).contiguous() for factor in (inputs, grads))
        contribution = Convolution(*images, torch.Size((48, 40, 1, 1)), Geometry((1, 1), (1, 1), (1, 1), 1))
    found = contribution.figures(workspace=Workspace(Forced(way))).squares
    torch.testing.assert_close(found, truth, rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_squares_of_small_half_precision_numbers_do_not_vanish(dtype):
    small = torch.full((2, 3), 1e-4, dtype=dtype)
    expected = small.double().square().sum(1)
    torch.testing.assert_close(row_squares(small), expected, rtol=1e-6, atol=0)
    outer = Outer(small.reshape(2, 1, 1, 3), small.reshape(2, 1, 1, 3), torch.Size((3, 3)))
    torch.testing.assert_close(outer.squared_norms(), expected.square(), rtol=1e-6, atol=0)


def test_squares_of_large_half_precision_numbers_do_not_overflow():
    large = torch.full((1, 4), 6e4, dtype=torch.float16)
    assert row_squares(large).item() == pytest.approx(4 * float(large[0, 0]) ** 2, rel=1e-6)


def test_long_rows_keep_their_digits_in_float32():
    row = torch.full((1, 3_000_001), 1e-3)
    assert squared_norm(row).item() == pytest.approx(3_000_001 * float(row[0, 0].double()) ** 2, rel=1e-6)


def test_a_sparse_gradient_counts_repeated_rows_once_summed():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]]).double()
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1, 4]]), values, (6, 2))
    assert squared_norm(sparse).item() == pytest.approx(float(sparse.to_dense().square().sum()))
    probe = Probe.draw(sparse.to_dense(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(probe.of(sparse), probe.of(sparse.to_dense()))


def test_uses_that_cancel_are_built():
    """A table's and a head's gradients that are each other's negatives but for 1e-6."""
    ids = torch.tensor([[0, 2]])
    grads = torch.randn(1, 2, 3)
    table = Scatter(ids, grads, torch.Size((4, 3)))
    one_hot = torch.nn.functional.one_hot(ids, 4).float().unsqueeze(1)
    head = Outer((-grads * (1 + 1e-3)).unsqueeze(1), one_hot, torch.Size((4, 3)))
    expected = (table.dense().double() + head.dense().double()).square().sum((1, 2))
    found = sum_of_uses([table, head]).squared_norms()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_probe_directions_have_variance_one_and_repeat_with_their_generator():
    like = torch.zeros(40, 50)
    draws = [Probe.draw(like, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(draws[0].left, draws[1].left)
    assert torch.equal(draws[0].right, draws[1].right)
    squares = draws[0].left.square().sum(1) * draws[0].right.square().sum(1)
    assert float(squares.mean()) == pytest.approx(2000, rel=0.5)


def test_a_linear_layers_norms_never_build_n_times_numel():
    """1,000 samples of a 1,000 × 1,000 weight would be 8 GB; the factors are 16 MB."""
    inputs, grads = torch.randn(1000, 1, 1, 1000).double(), torch.randn(1000, 1, 1, 1000).double()
    outer = Outer(inputs, grads, torch.Size((1000, 1000)))
    assert outer.nbytes == 2 * 8 * 1_000_000
    expected = inputs.square().sum(3) * grads.square().sum(3)
    torch.testing.assert_close(outer.squared_norms(), expected[:, 0, 0])
