import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from gradscope.statistics.outliers import outliers
from gradscope.statistics.sample_norms import norm_quantiles, sample_norms

NAN = math.nan


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_sample_norms_are_contributions_over_weights():
    assert_close(sample_norms(f64(4, 9, NAN), f64(0.5, 0.25, 0.25)), f64(4, 12, NAN), equal_nan=True)


def test_quantiles_are_numpys_over_the_measured_samples():
    norms = torch.rand(31, dtype=torch.float64)
    norms[[3, 9]] = NAN
    expected = np.nanquantile(norms.numpy(), [0.1, 0.5, 0.9])
    assert norm_quantiles(norms, (0.1, 0.5, 0.9)) == pytest.approx(expected, rel=1e-12)


def test_quantiles_of_nothing_are_nan():
    assert all(map(math.isnan, norm_quantiles(f64(NAN, NAN))))
    assert all(map(math.isnan, norm_quantiles(f64())))


def test_samples_stand_out_by_their_ratio_to_the_median_largest_first():
    assert outliers(f64(1, 8, 1.5, 2, 6)[None]) == [((1, 4.0), (4, 3.0))]


@pytest.mark.parametrize("n", [2, 5, 6, 9])
def test_the_median_is_numpys(n):
    norms = torch.rand(3, n, dtype=torch.float64)
    norms[1, 0] = NAN
    norms[:, -1] = 100
    for row, found in zip(norms, outliers(norms), strict=True):
        ratio = 100 / np.nanmedian(row.numpy())
        assert (dict(found).get(n - 1) == pytest.approx(ratio)) if ratio >= 2 else not found


def test_samples_that_were_not_measured_neither_count_nor_stand_out():
    assert outliers(f64(NAN, 1, NAN, 1, 5, NAN)[None]) == [((4, 5.0),)]


def test_at_most_five_samples_are_named():
    rows = outliers(torch.cat([torch.ones(20), 10 + torch.arange(9)])[None])
    assert [i for i, _ in rows[0]] == [28, 27, 26, 25, 24]


@pytest.mark.parametrize("row", [[0.0, 0, 0, 7], [NAN, NAN], [1.0], []], ids=str)
def test_nothing_stands_out_where_the_median_says_nothing(row):
    assert outliers(torch.tensor([row], dtype=torch.float64)) == [()]


def test_an_infinite_gradient_stands_out():
    assert outliers(f64(1, math.inf, 1)[None]) == [((1, math.inf),)]
