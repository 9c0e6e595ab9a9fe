"""Figures of ordinary windows are computed when somebody looks; when that is changes none of them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradscope


def watched(*, look, moments=False, freeze=False):
    """The last report of twelve windows of two micro-steps, without its cost in time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    scope = gradscope.watch(model, optimizer, moments=moments)
    for window in range(12):
        if freeze and window == 6:
            model[0].requires_grad_(False)
        for micro_step in range(2):
            x = torch.randn(4 + micro_step, 5, generator=generator, dtype=torch.float64)
            (F.mse_loss(model(x), x[:, :3]) / 2).backward()
            if look:
                scope.report()
        optimizer.step()
        optimizer.zero_grad()
        if look:
            scope.report()
    scope.close()
    found = scope.report().to_dict()
    del found["overhead"]
    return found


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
def test_looking_at_every_window_or_after_all_of_them_shows_the_same(moments, freeze):
    late = watched(look=False, moments=moments, freeze=freeze)
    assert repr(late) == repr(watched(look=True, moments=moments, freeze=freeze))
    assert late["coverage"]["2.weight"]["status"] == "exact"
    assert (late["coverage"]["0.weight"]["status"] == "frozen") is freeze
