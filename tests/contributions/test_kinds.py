"""Every kind of contribution answers every question as if it were written out in full."""

import pytest
import torch
from kinds import KINDS, N

from gradscope.contributions import Probe, outer

EVERY = pytest.mark.parametrize("kind", list(KINDS))


def made(kind):
    torch.manual_seed(4)
    return KINDS[kind]()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def in_full(contribution):
    return contribution.dense().reshape(contribution.samples, *contribution.shape)


@EVERY
def test_dense_is_all_of_it(kind):
    contribution, truth = made(kind)
    assert contribution.samples == N
    assert contribution.nbytes > 0 or "nothing" in kind
    close(in_full(contribution), truth.reshape(N, *contribution.shape))


@EVERY
def test_squared_norms_are_float64_and_include_cross_terms(kind):
    contribution, truth = made(kind)
    found = contribution.squared_norms()
    assert found.dtype == torch.float64
    close(found, truth.reshape(N, -1).abs().square().sum(1))


@EVERY
def test_second_moment_is_the_sum_of_squares_of_every_element(kind):
    contribution, truth = made(kind)
    close(
        contribution.second_moment().reshape(contribution.shape),
        truth.reshape(N, *contribution.shape).abs().square().sum(0),
    )


@EVERY
def test_total_is_the_sum_and_one_is_one_sample(kind):
    contribution, truth = made(kind)
    truth = truth.reshape(N, *contribution.shape)
    close(contribution.total().reshape(contribution.shape), truth.sum(0))
    close(contribution.one(3).reshape(contribution.shape), truth[3])


@EVERY
@pytest.mark.parametrize("positions", [1, 1 << 30], ids=["sums along positions", "products with directions"])
def test_probes_are_inner_products_with_the_same_directions_as_of_the_gradient(monkeypatch, kind, positions):
    monkeypatch.setattr(outer, "POSITIONS", positions)
    contribution, truth = made(kind)
    truth = truth.reshape(N, *contribution.shape)
    probe = Probe.draw(truth[0], torch.Generator().manual_seed(0))
    found = contribution.probe(probe)
    close(found, torch.stack([probe.of(one) for one in truth]).to(found.dtype))
    close(found.sum(0), probe.of(truth.sum(0)).to(found.dtype))


@EVERY
def test_select_takes_some_samples(kind):
    contribution, truth = made(kind)
    index = torch.tensor([4, 0])
    close(in_full(contribution.select(index)), truth.reshape(N, *contribution.shape)[index])


@EVERY
@pytest.mark.parametrize("owner", [[0, 1, 0, 2, 1], [2, 2, 2, 2, 2], [4, 3, 2, 1, 0]], ids=str)
def test_regroup_sums_rows_into_their_samples_also_where_a_sample_has_none(kind, owner):
    contribution, truth = made(kind)
    truth = truth.reshape(N, *contribution.shape)
    expected = torch.zeros_like(truth).index_add_(0, torch.tensor(owner), truth)
    found = contribution.regroup(torch.tensor(owner), N)
    assert found.samples == N
    close(in_full(found), expected)
    close(found.squared_norms(), expected.reshape(N, -1).abs().square().sum(1))


@EVERY
def test_no_question_changes_the_answer_to_another(kind):
    contribution, truth = made(kind)
    (
        contribution.squared_norms(),
        contribution.second_moment(),
        contribution.total(),
        contribution.select(torch.tensor([1])),
    )
    close(in_full(contribution), truth.reshape(N, *contribution.shape))
