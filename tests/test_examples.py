"""Each example is run from its own text, and the facts that it prints are looked at."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted(Path(__file__).resolve().parents[1].joinpath("examples").glob("*.py"))


@pytest.fixture
def printed(capsys):
    def run(name):
        runpy.run_path(str(EXAMPLES[0].with_name(f"{name}.py")), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows(example):
    text = example.read_text()
    assert text.count("\n") < 60
    assert text.startswith('"""')


def test_an_existing_loop_trains_as_before_and_has_a_report(printed):
    out = printed("existing_loop")
    assert "windows seen: 65, averaged: 20, samples in each: 32" in out
    assert "with and without gradscope, bitwise equal: True" in out
    assert "noise scale" in out


def test_uneven_windows_are_minibatches(printed):
    out = printed("accumulation")
    assert re.findall(r"(\d+) samples in (\d+) micro-steps", out) == [("16", "3"), ("16", "3"), ("11", "2")]
    assert out.count("equal: True") == 9
    assert "False" not in out


def test_the_mean_of_gradients_is_not_the_gradient_of_means(printed):
    out = printed("mean_of_gradients")
    assert "mean of the per-sample gradients: True" in out
    assert "mean squared error 1, gradients [2.0, -2.0], their mean 0" in out
    assert "norms [2.0, 2.0], variance 8, resolved: False" in out
    assert int(re.search(r"off by (\d+)%", out)[1]) > 10


def test_minibatches_of_every_size_follow_the_law(printed):
    rows = [line.split() for line in printed("minibatch_law").splitlines()[1:]]
    assert [int(row[0]) for row in rows] == list(range(1, 9))
    assert sum(int(row[1]) for row in rows) == 2**8 - 1
    assert all(row[2] == row[5] == "True" and row[3] == row[4] for row in rows)
    assert float(rows[-1][3]) == 0


def test_ten_passes_of_five_are_one_of_fifty(printed):
    out = printed("effective_batch")
    assert "50 samples in 10 passes of 5" in out
    assert "50 samples in 50 passes of 1" in out
    assert out.count("equal:") == out.count("True") == 6


def test_most_wrong_labels_are_among_the_largest_gradients(printed):
    out = printed("mislabelled_digits")
    (looked_at, found, planted), (_, found_in_twice_as_many, _) = (
        tuple(map(int, row)) for row in re.findall(r"among the (\d+) .*: (\d+) of the (\d+)", out)
    )
    assert looked_at == planted == 36
    assert found >= 27
    assert found_in_twice_as_many >= 33
