import math

import numpy as np
import pytest

from gradscope.statistics.drift import drift
from gradscope.statistics.heavy_tails import heavy_tails


def f64(*values):
    return np.array(values, dtype=float)


def test_a_rising_line_is_a_drift_and_a_zigzag_is_none():
    assert drift(np.arange(10.0))
    assert not drift(f64(1, 2, 1, 2, 1, 2, 1, 2, 1, 2))


def test_a_step_is_a_drift():
    assert drift(f64(*[1.0, 1.1, 0.9] * 3, *[2.0, 2.1, 1.9] * 3))


@pytest.mark.parametrize("values", [(1.0,) * 8, (0.0,) * 8, (1.0, 9.0), ()], ids=str)
def test_what_does_not_move_or_is_too_short_does_not_drift(values):
    assert not drift(f64(*values))


def test_a_certain_change_of_a_few_percent_is_not_worth_a_warning():
    assert not drift(np.linspace(1, 1.05, 20))


def test_drift_does_not_depend_on_sign_or_scale():
    values = 1 + np.random.default_rng(0).random(12) * 0.1 + np.linspace(0, 1, 12)
    assert drift(values)
    assert drift(-1e-30 * values)


@pytest.mark.parametrize(("n", "flagged"), [(4, False), (400, True)])
def test_the_same_scatter_over_windows_means_heavier_tails_in_larger_windows(n, flagged):
    noise = f64(1, 1.5, 1, 1.5, 1, 1.5)  # squared successive differences 0.25, mean 1.25
    assert heavy_tails(noise, np.full(6, float(n))) is flagged


def test_a_steady_drift_is_not_a_heavy_tail():
    noise = np.logspace(0, -1, 20)
    assert not heavy_tails(noise, np.full(20, 64.0))


@pytest.mark.parametrize("noise", [(1.0, 9.0, 1.0, 9.0), (0.0,) * 6, (math.nan,) * 6], ids=str)
def test_too_few_windows_or_no_noise_are_not_heavy_tailed(noise):
    assert not heavy_tails(f64(*noise), np.full(len(noise), 1000.0))
