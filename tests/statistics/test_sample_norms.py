import math

import numpy as np
import pytest
import torch

from gradscope.statistics.outliers import outliers
from gradscope.statistics.sample_norms import norm_quantiles, sample_norms

NAN = math.nan


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_sample_norms_are_contributions_over_weights():
    found = sample_norms(np.array([4, 9, NAN]), np.array([0.5, 0.25, 0.25]))
    np.testing.assert_array_equal(found, [4, 12, NAN])


def test_quantiles_are_numpys_over_the_measured_samples():
    norms = torch.rand(31, dtype=torch.float64)
    norms[[3, 9]] = NAN
    expected = np.nanquantile(norms.numpy(), [0.1, 0.5, 0.9])
    assert norm_quantiles(norms, (0.1, 0.5, 0.9)) == pytest.approx(expected, rel=1e-12)


def test_quantiles_of_nothing_are_nan():
    assert all(map(math.isnan, norm_quantiles(f64(NAN, NAN))))
    assert all(map(math.isnan, norm_quantiles(f64())))


def test_samples_stand_out_by_their_ratio_to_the_median_largest_first():
    assert outliers(np.array([[1, 8, 1.5, 2, 6]])) == [((1, 4.0), (4, 3.0))]


@pytest.mark.parametrize("n", [2, 5, 6, 9])
def test_the_median_is_numpys(n):
    norms = np.random.default_rng(n).random((3, n))
    norms[1, 0] = NAN
    norms[:, -1] = 100
    for row, found in zip(norms, outliers(norms), strict=True):
        ratio = 100 / np.nanmedian(row)
        assert (dict(found).get(n - 1) == pytest.approx(ratio)) if ratio >= 2 else not found


def test_samples_that_were_not_measured_neither_count_nor_stand_out():
    assert outliers(np.array([[NAN, 1, NAN, 1, 5, NAN]])) == [((4, 5.0),)]


def test_at_most_five_samples_are_named():
    rows = outliers(np.concatenate([np.ones(20), 10.0 + np.arange(9)])[None])
    assert [i for i, _ in rows[0]] == [28, 27, 26, 25, 24]


@pytest.mark.parametrize("row", [[0.0, 0, 0, 7], [NAN, NAN], [1.0], []], ids=str)
def test_nothing_stands_out_where_the_median_says_nothing(row):
    assert outliers(np.array([row], dtype=float)) == [()]


def test_an_infinite_gradient_stands_out():
    assert outliers(np.array([[1, math.inf, 1]])) == [((1, math.inf),)]
