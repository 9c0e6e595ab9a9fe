"""The zoo's own truths agree with each other, wherever there are two."""

import pytest
import torch
from zoo import PROBLEMS, contributions
from zoo.truth import one_by_one


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.separable and p.oracle], ids=str)
def test_the_oracle_and_single_samples_agree(problem):
    expected = one_by_one(problem)
    for name, found in contributions(problem).items():
        scale = float(expected[name].norm())
        torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-12 * scale)


def test_no_two_problems_have_one_name():
    assert len({problem.name for problem in PROBLEMS}) == len(PROBLEMS)
