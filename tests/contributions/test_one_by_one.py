"""Large products are built one at a time on a CPU: the figures stay what they are."""

import pytest
import torch

from gradscope.contributions import Outer, OuterBias, Probe
from gradscope.contributions.choice import Forced
from gradscope.contributions.outer_norms import large
from gradscope.contributions.workspace import Workspace


@pytest.mark.parametrize(("d", "p"), [(256, 264), (264, 256)])
@pytest.mark.parametrize("budget", [None, 1 << 16])
@pytest.mark.parametrize("k", [0, 2])
def test_figures_of_large_products_are_those_of_the_gradients_in_full(d, p, budget, k):
    generator = torch.Generator().manual_seed(1)
    inputs, grads = (torch.randn(3, 1, 64, width, generator=generator, dtype=torch.float64) for width in (d, p))
    outer = Outer(inputs, grads, torch.Size((p, d)))
    assert large(inputs, grads)
    full = outer.dense()
    probe = Probe.draw(full[0], generator, k=k) if k else None
    workspace = Workspace(Forced("products"), budget)
    for _ in range(2):
        found = outer.figures(probe, moments=True, workspace=workspace)
        torch.testing.assert_close(found.squares, full.flatten(1).square().sum(1), rtol=1e-12, atol=0)
        torch.testing.assert_close(found.second_moment, full.square().sum(0), rtol=1e-12, atol=0)
        if probe is not None:
            truth = torch.stack([probe.of(one) for one in full])
            torch.testing.assert_close(found.probes, truth, rtol=1e-10, atol=1e-8)


def test_memory_that_was_given_back_is_lent_again_and_no_other():
    workspace, like = Workspace(), torch.empty(0)
    first, second = workspace.lend(torch.Size((2, 3)), like), workspace.lend(torch.Size((6,)), like)
    assert first.data_ptr() != second.data_ptr()
    stranger = torch.empty(6)
    workspace.give_back(stranger)
    workspace.give_back(first.view(3, 2))
    again = workspace.lend(torch.Size((6,)), like)
    assert again.data_ptr() == first.data_ptr()
    workspace.give_back(second)
    workspace.give_back(second)
    third, fourth = (workspace.lend(torch.Size((6,)), like) for _ in range(2))
    assert third.data_ptr() == second.data_ptr()
    assert fourth.data_ptr() not in {first.data_ptr(), second.data_ptr(), stranger.data_ptr()}


@pytest.mark.parametrize("algorithm", ["Gram", "products"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("t", "d", "p"), [(6, 3, 4), (9, 3, 4), (9, 4, 3), (64, 256, 264)])
def test_a_biass_sums_come_with_the_weights_probe_or_alone(algorithm, k, t, d, p):
    generator = torch.Generator().manual_seed(2)
    inputs, grads = (torch.randn(3, 1, t, width, generator=generator, dtype=torch.float64) for width in (d, p))
    outer, alone = Outer(inputs, grads, torch.Size((p, d))), OuterBias(grads[:, 0])
    full = outer.dense()
    probe = Probe.draw(full[0], generator, k=k)
    unbiased = outer.probe(probe)
    outer.bias = OuterBias(grads[:, 0])
    found = outer.figures(probe, moments=algorithm == "products", workspace=Workspace(Forced(algorithm)))
    truth = torch.stack([probe.of(one) for one in full])
    for along in (found.probes, unbiased):
        assert along.dtype == torch.float64
        torch.testing.assert_close(along, truth, rtol=1e-10, atol=1e-8)
    expected = sum(grads[:, 0, position] for position in range(t))
    for bias in (outer.bias, alone):
        torch.testing.assert_close(bias.values, expected, rtol=1e-12, atol=1e-12)
