"""A small model, its samples, and windows of micro-steps."""

import torch
from torch import nn


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def sgd(model, lr=0.0):
    return torch.optim.SGD(model.parameters(), lr=lr)


def samples(n=6, seed=5):
    return 0.5 + torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def losses(model, x):
    """One loss per sample."""
    return (model(x) + x[:, :2]).square().sum(1)


def window(model, optimizer, x, sizes, *, weights=None, scale=1.0, scope=None):
    """One effective minibatch in micro-steps of these sizes; the gradients are cleared afterwards."""
    weights = torch.ones(len(x), dtype=torch.float64) if weights is None else weights
    for part, u in zip(x.split(sizes), weights.split(sizes), strict=True):
        loss = scale * (u * losses(model, part)).sum() / weights.sum()
        if scope is not None:
            scope.annotate(weights=u)
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def increments(model, x, sizes, weights=None):
    """Δⱼ, parameter by parameter, from autograd alone."""
    weights = torch.ones(len(x), dtype=torch.float64) if weights is None else weights
    return [
        torch.autograd.grad((u * losses(model, part)).sum() / weights.sum(), tuple(model.parameters()))
        for part, u in zip(x.split(sizes), weights.split(sizes), strict=True)
    ]


def by_hand(parts, sizes, weights=None):
    """(‖ḡ‖, trΣ, |G|²) of all parameters together."""
    n = sum(sizes)
    weights = torch.ones(n, dtype=torch.float64) if weights is None else weights
    share = torch.stack([part.sum() for part in weights.split(sizes)]) / weights.sum()
    flat = torch.stack([torch.cat([g.reshape(-1) for g in part]) for part in parts])
    total = flat.sum(0).square().sum()
    grad_sq = (total - flat.square().sum()) / (1 - share.square().sum())
    return float(total.sqrt()), float(n * (total - grad_sq)), float(grad_sq)
