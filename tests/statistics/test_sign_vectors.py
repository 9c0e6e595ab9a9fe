from itertools import permutations, product

import numpy as np
import pytest
import torch

from gradscope.statistics.random_signs import balanced_signs, signed_contribution_sq_sum
from gradscope.statistics.signal import signal
from gradscope.statistics.trace_cov import trace_cov


def every_balanced_vector(b):
    """All zero-sum vectors of signs, with one zero where ``b`` is odd."""
    for r in product((-1.0, 0.0, 1.0), repeat=b):
        if r.count(1.0) == r.count(-1.0) == b // 2:
            yield torch.tensor(r, dtype=torch.float64)


def estimate(h, r):
    return signed_contribution_sq_sum(float((r @ h).square().sum()), float(h.sum(0).square().sum()), r)


@pytest.mark.parametrize(("b", "count"), [(2, 2), (3, 6), (4, 6), (5, 30), (7, 140), (8, 70)])
def test_the_mean_over_all_balanced_sign_vectors_is_exact(b, count):
    h = torch.randn(b, 6, dtype=torch.float64) + 1
    estimates = [estimate(h, r) for r in every_balanced_vector(b)]
    assert len(estimates) == count
    assert sum(estimates) / count == pytest.approx(float(h.square().sum()), rel=1e-12)


@pytest.mark.parametrize("b", [4, 7, 8])
def test_the_mean_over_all_balanced_sign_vectors_gives_tr_cov(b):
    g = torch.randn(b, 6, dtype=torch.float64) + 1
    h, n = g / b, np.float64(b)
    mean_sq = h.sum(0).square().sum().numpy()
    estimates = [
        trace_cov(mean_sq, signal(mean_sq, np.float64(estimate(h, r)), 1 / n), n) for r in every_balanced_vector(b)
    ]
    assert np.mean(estimates) == pytest.approx(float(g.var(0).sum()), rel=1e-12)


def test_any_zero_sum_vector_in_random_order_is_exact():
    h = torch.randn(4, 3, dtype=torch.float64)
    orders = [torch.tensor(r, dtype=torch.float64) for r in permutations((3.0, -1.0, -1.0, -1.0))]
    mean = sum(estimate(h, r) for r in orders) / len(orders)
    assert mean == pytest.approx(float(h.square().sum()), rel=1e-12)


def test_estimates_of_micro_steps_add_up_to_the_window():
    h = torch.randn(7, 3, dtype=torch.float64)
    parts = [h[:4], h[4:]]
    means = [
        sum(estimate(part, r) for r in vectors) / len(vectors)
        for part in parts
        for vectors in [list(every_balanced_vector(len(part)))]
    ]
    assert sum(means) == pytest.approx(float(h.square().sum()), rel=1e-12)


def test_one_sample_is_exact_without_signs():
    assert signed_contribution_sq_sum(0.0, 2.5, balanced_signs(1, torch.Generator())) == 2.5


@pytest.mark.parametrize("b", [0, 1, 2, 5, 8])
def test_signs_sum_to_zero_and_leave_at_most_one_out(b):
    r = balanced_signs(b, torch.Generator().manual_seed(1))
    assert r.shape == (b,)
    assert float(r.sum()) == 0
    assert int((r == 0).sum()) == b % 2
    assert set(r.tolist()) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize(("b", "vectors"), [(3, 6), (4, 6)])
def test_every_sign_vector_is_drawn_equally_often(b, vectors):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([balanced_signs(b, generator) for _ in range(3000)])
    counts = drawn.unique(dim=0, return_counts=True)[1]
    assert len(counts) == vectors
    expected = 3000 / vectors
    assert float(((counts - expected) ** 2 / expected).sum()) < 20.5  # chi², 5 degrees of freedom, 99.9 %


def test_drawing_signs_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    balanced_signs(9, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before)
