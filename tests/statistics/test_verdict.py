import math

import pytest

from gradscope.statistics.verdict import figure, verdict

NAN, INF = math.nan, math.inf


def test_noise_above_signal_recommends_no_more_than_is_known():
    assert verdict(32, 20, 85.2, (71.3, 104.4)) == (
        "at n=32 noise exceeds signal (B ≈ 85, [71, 104]): a larger batch would cut steps nearly in proportion, "
        "at no fewer samples, if the learning rate is retuned; plain-SGD measure"
    )


def test_signal_above_noise_says_that_a_larger_batch_gains_little():
    found = verdict(256, 20, 85.2, (71.3, 104.4))
    assert found.startswith("at n=256 signal exceeds noise (B ≈ 85, [71, 104]): a larger batch would cut few steps")


def test_an_interval_on_both_sides_of_the_batch_size_makes_no_claim():
    assert "neither noise nor signal clearly exceeds" in verdict(85, 20, 85.2, (71.3, 104.4))


@pytest.mark.parametrize(
    ("samples", "low", "start"),
    [
        (32, 340.2, "not resolved: at least 340; at n=32 noise exceeds signal"),
        (512, 340.2, "not resolved: at least 340"),
        (32, 0.0, "not resolved: these windows do not tell the gradient from zero"),
    ],
)
def test_not_resolved_is_said_with_what_is_known(samples, low, start):
    found = verdict(samples, 20, NAN, (low, INF))
    assert found.startswith(start)
    assert "noise exceeds" not in found or low > samples


@pytest.mark.parametrize("windows", [1, 4])
def test_below_five_windows_there_is_no_verdict(windows):
    assert verdict(32, windows, 85.0, (0.0, INF)) == (
        f"no verdict yet: {windows} of the 5 windows that an interval needs"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [(340.2, "340"), (71.3, "71"), (8.44, "8.4"), (0.253, "0.25"), (1234.0, "1,230"), (2.5e7, "2.5e+07"), (INF, "∞")],
)
def test_figures_are_short(value, shown):
    assert figure(value) == shown
