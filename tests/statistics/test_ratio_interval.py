import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from gradscope.statistics.ratio_interval import ratio_interval


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def interval(x, y, used=None):
    used = torch.ones(len(x), dtype=torch.bool) if used is None else used
    low, high = ratio_interval(x[:, None].numpy(), y[:, None].numpy(), used[:, None].numpy())
    return low.item(), high.item()


def accepted(x, y, ratio):
    """Whether a t-test does not reject that the mean of ``x - ratio·y`` is zero: the definition."""
    return stats.ttest_1samp((x - ratio * y).numpy(), 0).pvalue >= 0.05


def random_pairs(numerator, denominator, count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(2, count, generator=generator, dtype=torch.float64)
    return numerator + e[0], denominator + e[1] + 0.5 * e[0]


@pytest.mark.parametrize("seed", range(5))
def test_the_ends_are_where_a_t_test_begins_to_reject(seed):
    x, y = random_pairs(40, 4, seed=seed)
    low, high = interval(x, y)
    assert 0 < low < float(x.mean() / y.mean()) < high < math.inf
    assert accepted(x, y, low * (1 + 1e-9))
    assert accepted(x, y, high * (1 - 1e-9))
    assert not accepted(x, y, low * (1 - 1e-9))
    assert not accepted(x, y, high * (1 + 1e-9))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("numerator", "denominator"), [(40, 0.3), (0.3, 0.3), (5, -0.5), (1, 3), (-3, 2)])
def test_the_interval_holds_what_a_t_test_accepts_and_no_more_than_it_must(numerator, denominator, seed):
    x, y = random_pairs(numerator, denominator, seed=seed)
    low, high = interval(x, y)
    grid = [float(r) for r in torch.logspace(-3, 3, 200)]
    inside = [accepted(x, y, r) for r in grid]
    assert all(low <= r <= high for r, kept in zip(grid, inside, strict=True) if kept)
    if (low, high) != (0.0, math.inf):
        assert all(kept for r, kept in zip(grid, inside, strict=True) if low < r < high)


def test_a_signal_that_is_not_resolved_leaves_a_lower_end_alone():
    x, y = random_pairs(100, 0.3)
    low, high = interval(x, y)
    assert low > 10
    assert high == math.inf


def test_a_signal_certainly_negative_leaves_no_interval():
    x, y = random_pairs(40, -8)
    assert interval(x, y) == (0, math.inf)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_fewer_than_five_windows_give_no_interval(count):
    x, y = random_pairs(40, 4, count)
    assert interval(x, y) == (0, math.inf)


def test_windows_out_of_use_change_nothing_even_where_nan():
    x, y = random_pairs(40, 4)
    used = torch.tensor([True] * 12 + [False] * 2)
    more = interval(torch.cat([x, f64(math.nan, 1e9)]), torch.cat([y, f64(math.nan, math.inf)]), used)
    assert more == pytest.approx(interval(x, y), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-60, 1e60])
def test_the_interval_does_not_depend_on_the_scale_of_the_gradient(scale):
    x, y = random_pairs(40, 4)
    assert interval(scale * x, scale * y) == pytest.approx(interval(x, y), rel=1e-12)


def test_many_ratios_at_once_are_each_their_own():
    pairs = [random_pairs(40, d, seed=s) for s, d in enumerate([4, 0.3, -8, 1])]
    x, y = (torch.stack(side, dim=1) for side in zip(*pairs, strict=True))
    low, high = map(torch.from_numpy, ratio_interval(x.numpy(), y.numpy(), np.ones(x.shape, dtype=bool)))
    assert_close(torch.stack([low, high], 1), f64(*(interval(*pair) for pair in pairs)))


def test_windows_that_agree_exactly_give_their_ratio():
    low, high = interval(torch.full((6,), 6.0, dtype=torch.float64), torch.full((6,), 3.0, dtype=torch.float64))
    assert (low, high) == pytest.approx((2, 2), rel=1e-6)


def test_a_gradient_that_is_always_zero_has_no_interval():
    assert interval(torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)) == (0, math.inf)
