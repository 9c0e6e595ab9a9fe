"""Small models and loops that the tests of a run's environment share."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope

N = 5


def samples():
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def mean_square(output):
    return output.square().mean()


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.b(torch.relu(self.a(self.n(x))))
        return x + self.wide(x)


class Blocks(nn.Module):
    """Blocks, each checkpointed or not; two may share a weight, and one may be used again outside of its checkpoint."""

    def __init__(self, reentrant=None, *, tied=False, again=False, width=4, depth=3):
        super().__init__()
        self.stem = nn.Linear(4, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 2)
        self.reentrant, self.again = reentrant, again
        if tied:
            self.blocks[1].a.weight = self.blocks[0].a.weight

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(self.blocks[-1].b(x) if self.again else x)


def train(model, x, *, windows=2, loss=mean_square, watch=None, optimizer=None, **options):
    """One report per window; the optimizer moves nothing."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0) if optimizer is None else optimizer
    reports = []
    with gradscope.watch(model if watch is None else watch, optimizer, **options) as scope:
        for _ in range(windows):
            loss(model(x)).backward()
            optimizer.step()
            optimizer.zero_grad()
            reports.append(scope.last)
    return reports


def statuses(report):
    return {name: coverage.status for name, coverage in report.coverage.items()}


def assert_all(report, status="exact"):
    assert set(statuses(report).values()) == {status}, report.coverage


def assert_agrees(found, expected, rtol=1e-9):
    """The same figures, whatever way they were found."""
    assert set(found.parameters) == set(expected.parameters)
    for name, stats in expected.parameters.items():
        torch.testing.assert_close(found.parameters[name].sample_norms, stats.sample_norms, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(found.total.sample_norms, expected.total.sample_norms, rtol=rtol, atol=1e-12)
