"""A run on another device stays bitwise what it is unwatched: gradients, parameters, outputs, random numbers of both sides."""

import pytest
import torch
from elsewhere import Elsewhere
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zoo import PROBLEMS

import gradscope
from gradscope.random_numbers import random_state

SETTINGS = {
    "default": {},
    "fused": {"fused": True},
    "second pass": {"second_pass": True},
    "subsample": {"subsample": 2},
    "no capture": {"capture": False},
}


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_training_is_the_same_to_the_last_bit(problem, options, device):
    traces = []
    for watch in (False, True):
        here = Elsewhere(problem, torch.float32, device)
        here.require()
        for group in here.optimizer.param_groups:
            group.update(lr=0.05, momentum=0.9)
        torch.manual_seed(3)
        scope = here.watch(**options) if watch else None
        trace = []
        for k in range(3):
            here.window(parts=2 if problem.separable else 1)
            trace.extend(p.grad.to_dense().cpu() for p in here.model.parameters() if p.grad is not None)
            here.optimizer.zero_grad(set_to_none=bool(k))
        if scope is not None:
            assert not [line for line in scope.report().warnings if "failed" in line]
            scope.close()
        traces.append([*trace, *(one.cpu() for one in here.model.state_dict().values()), *random_state()])
    assert len(traces[0]) == len(traces[1])
    assert all(torch.equal(one, other) for one, other in zip(*traces, strict=True))


class Dropping(nn.Module):
    """Dropout, once inside a checkpoint: a backward draws the device's random numbers."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = F.dropout(self.first(x), 0.3)
        x = checkpoint(lambda y: F.dropout(self.middle(y).tanh(), 0.3), x, use_reentrant=False)
        return self.last(x)


class Drawing(torch.autograd.Function):
    """A backward that draws."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.rand(grad.shape[1:], device=grad.device)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(Drawing.apply(self.first(x)))


@pytest.mark.parametrize("build", [Dropping, Noisy], ids=lambda build: build.__name__)
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_what_a_backward_draws_on_the_device_is_drawn_once(build, options, device):
    traces = []
    for watch in (False, True):
        torch.manual_seed(1)
        model = build().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(6, 4).to(device)
        scope = gradscope.watch(model, optimizer, **options) if watch else None
        trace = []
        for _ in range(4):
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            trace.extend([loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())])
            optimizer.zero_grad()
        if scope is not None:
            scope.close()
        traces.append([*trace, *random_state()])
    assert len(random_state()) == 2
    assert all(torch.equal(one, other) for one, other in zip(*traces, strict=True))
