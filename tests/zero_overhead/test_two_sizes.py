"""The noise of samples, from the gradients of parts alone: laws that hold exactly."""

import itertools

import numpy as np
import pytest
import torch

from gradscope.statistics.signal import signal
from gradscope.statistics.two_sizes import contribution_sq_sum_of_parts


def number(value):
    return torch.as_tensor(value, dtype=torch.float64)


def estimate(contributions, parts, weights):
    """Σ‖hᵢ‖² as it is seen from the parts; ``parts`` are lists of sample indices."""
    share = weights / weights.sum()
    sums = torch.stack([contributions[list(part)].sum(0) for part in parts])
    part_weights = torch.stack([share[list(part)].sum() for part in parts])
    squares = (sums, part_weights, share)
    total = contributions.sum(0).square().sum().numpy()
    return torch.as_tensor(contribution_sq_sum_of_parts(total, *(x.square().sum().numpy() for x in squares)))


def splits(n, sizes):
    """Every way to put n samples into parts of these sizes, each order of the parts its own."""
    for order in itertools.permutations(range(n)):
        ends = list(itertools.accumulate(sizes))
        yield [order[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 2, 3), (1, 5), (3, 3), (1,) * 6], ids=str)
def test_the_mean_over_all_splits_is_the_sum_of_the_samples_squares(sizes):
    contributions = torch.randn(6, 4, dtype=torch.float64) + 0.3
    truth = contributions.square().sum()
    seen = [estimate(contributions, parts, torch.ones(6, dtype=torch.float64)) for parts in splits(6, sizes)]
    torch.testing.assert_close(torch.stack(seen).mean(), truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (1, 1, 2)], ids=str)
@pytest.mark.parametrize("weights", [(1.0, 1, 1, 1), (1.0, 2, 3, 0.5)], ids=str)
def test_the_signal_is_unbiased_over_all_draws_of_a_population(sizes, weights):
    population = torch.tensor([[1.0, 0.0], [-0.5, 2.0], [0.3, -1.0]], dtype=torch.float64)
    truth = population.mean(0).square().sum()
    weights = torch.tensor(weights, dtype=torch.float64)
    share = weights / weights.sum()
    ends = list(itertools.accumulate(sizes))
    parts = [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    found = []
    for draw in itertools.product(range(3), repeat=4):
        contributions = population[list(draw)] * share.unsqueeze(1)
        own = estimate(contributions, parts, weights)
        found.append(signal(contributions.sum(0).square().sum().numpy(), own.numpy(), share.square().sum().numpy()))
    assert np.mean(found) == pytest.approx(float(truth), rel=1e-12)


def test_with_equal_parts_it_is_the_estimator_of_two_batch_sizes():
    contributions = torch.randn(8, 5, dtype=torch.float64)
    small = torch.stack([4 * contributions[:2].sum(0), 4 * contributions[2:4].sum(0), 4 * contributions[4:6].sum(0),
                         4 * contributions[6:].sum(0)]).square().sum(1).mean()  # fmt: skip
    big = contributions.sum(0).square().sum()
    grad_sq = (8 * big - 2 * small) / (8 - 2)
    own = estimate(contributions, [range(j, j + 2) for j in range(0, 8, 2)], torch.ones(8, dtype=torch.float64))
    assert signal(big.numpy(), own.numpy(), np.float64(1 / 8)) == pytest.approx(float(grad_sq), rel=1e-12)


def test_samples_as_parts_give_the_sum_itself():
    contributions, weights = torch.randn(5, 3, dtype=torch.float64), torch.tensor([1.0, 2, 3, 4, 0.5])
    own = estimate(contributions, [[i] for i in range(5)], weights.double())
    torch.testing.assert_close(own, contributions.square().sum(), rtol=1e-12, atol=0)


def test_one_part_says_nothing():
    contributions = torch.randn(5, 3, dtype=torch.float64)
    assert estimate(contributions, [range(5)], torch.ones(5, dtype=torch.float64)).isnan()
