"""What the intervals and warnings promise, on problems with closed-form ``tr Σ`` and ``|G|²``, through the report."""

import math

import pytest
import torch
from known_noise import ELEMENTS, gaussian, laplace, lognormal_rows, runs, student_t5, windows_of

from gradscope.summary import summarise

RUNS = 1000
NOISE_SCALES = (16, 256, 1024)


def shift(noise_scale):
    """What every element's mean must be: ``|G|² = ELEMENTS·shift²`` and ``tr Σ = ELEMENTS``."""
    return math.sqrt(1 / noise_scale)


def reports(drawn, by=0.0):
    """One ``Stats`` per run."""
    return list(summarise(*windows_of(drawn.samples, *drawn.sums(by))).layers.values())


def warned(drawn, word, by):
    """The fraction of runs whose own report has a warning with this word."""
    first, second = drawn.sums(by)
    count = first.shape[1]
    found = [summarise(*windows_of(drawn.samples, first[:, [r]], second[:, [r]])).warnings for r in range(count)]
    return sum(any(word in line for line in lines) for lines in found) / count


@pytest.mark.parametrize("noise", [gaussian, laplace, student_t5], ids=lambda noise: noise.__name__)
def test_the_interval_covers_in_95_percent_of_runs_and_is_one_sided_where_not_resolved(noise):
    drawn = runs(noise, RUNS)
    for true in NOISE_SCALES:
        found = reports(drawn, shift(true))
        intervals = [stats.noise_scale_interval for stats in found]
        covered = sum(low <= true <= high for low, high in intervals) / RUNS
        assert 0.93 <= covered <= 0.97, f"noise scale {true}: covered {covered:.1%}"
        for stats, (_, high) in zip(found, intervals, strict=True):
            assert stats.resolved == (stats.grad_sq > 0 and math.isfinite(high))
            assert stats.resolved != math.isnan(stats.noise_scale)
        lower_ends = [low for low, high in intervals if math.isinf(high)]
        assert sum(low > 0 for low in lower_ends) >= 0.9 * len(lower_ends)


def test_at_a_noise_scale_far_above_the_evidence_most_runs_say_not_resolved():
    found = reports(runs(gaussian, RUNS), shift(1024))
    unresolved = [stats for stats in found if not stats.resolved]
    assert len(unresolved) > 0.9 * RUNS
    assert sum(stats.reason.startswith("not resolved: at least") for stats in unresolved) > 0.9 * len(unresolved)


@pytest.mark.parametrize("noise", [gaussian, laplace, student_t5, lognormal_rows], ids=lambda noise: noise.__name__)
def test_noise_and_signal_are_unbiased(noise):
    found = reports(runs(noise, RUNS), shift(16))
    for values, true in (([s.trace_cov for s in found], ELEMENTS), ([s.grad_sq for s in found], ELEMENTS / 16)):
        drawn = torch.tensor(values)
        assert abs(drawn.mean() - true) < 4 * drawn.std() / math.sqrt(RUNS)


@pytest.mark.parametrize(
    ("noise", "low", "high"),
    [(gaussian, 0, 0.01), (laplace, 0, 0.01), (student_t5, 0, 0.02), (lognormal_rows, 0.95, 1)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_heavy_tails_are_flagged_on_lognormal_rows_alone(noise, low, high):
    assert low <= warned(runs(noise, 200), "heavy tails", shift(16)) <= high


def test_the_interval_is_optimistic_where_heavy_tails_are_flagged():
    found = reports(runs(lognormal_rows, RUNS), shift(16))
    assert sum(low <= 16 <= high for low, high in (s.noise_scale_interval for s in found)) < 0.9 * RUNS


def test_a_signal_that_falls_tenfold_is_flagged_as_drift():
    fall = torch.logspace(0, -0.5, 20, dtype=torch.float64)[:, None]
    drawn = runs(gaussian, 200)
    assert warned(drawn, "drift: |G|²", fall * shift(8)) > 0.95
    assert warned(drawn, "heavy tails", fall * shift(8)) == 0


@pytest.mark.parametrize("noise", [gaussian, student_t5, lognormal_rows], ids=lambda noise: noise.__name__)
def test_drift_is_seldom_flagged_where_there_is_none(noise):
    assert warned(runs(noise, 300), "drift", shift(64)) < 0.08
