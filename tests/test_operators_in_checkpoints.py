"""What operators read of an autograd node, its own backward reads once more: a checkpoint gives every tensor out only once."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope


class Raw(nn.Module):
    """Parameters that no layer's rule describes, of each operator that reads saved tensors."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
        self.weight, self.table = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.rand(3, 4))
        self.kernel = nn.Parameter(torch.rand(3, 3, 2))
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)

    def forward(self, x):
        h = (x * self.scale + self.shift) @ self.weight / self.scale.exp()
        h = h + self.table[(x.sum(2) > 0).long()]
        h = h + nn.functional.pad(nn.functional.conv1d(h, self.kernel), (0, 1))
        return self.attention(h, h, h)[0]


class Model(nn.Module):
    def __init__(self, again):
        super().__init__()
        self.enter, self.raw, self.head = nn.Linear(2, 4), Raw(), nn.Linear(4, 2)
        self.again = again

    def forward(self, x):
        h = self.enter(x).tanh()
        return self.head(checkpoint(self.raw, h, use_reentrant=False) if self.again else self.raw(h))


def trained(again, watch, **options):
    torch.manual_seed(1)
    model = Model(again).double()
    optimizer = torch.optim.Adam(model.parameters())
    scope = gradscope.watch(model, optimizer, **options) if watch else None
    for _ in range(2):
        model(torch.randn(5, 3, 2, dtype=torch.float64)).sin().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, scope


@pytest.mark.parametrize("second_pass", [False, True])
def test_training_is_bitwise_the_same(second_pass):
    watched, scope = trained(True, True, second_pass=second_pass)
    plain, _ = trained(True, False)
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), plain.parameters(), strict=True))
    scope.close()


def test_figures_are_those_without_the_checkpoint():
    (_, inside), (_, outside) = trained(True, True), trained(False, True)
    for name, stats in outside.last.parameters.items():
        assert inside.last.coverage[name].status == "exact", (name, inside.last.coverage[name])
        torch.testing.assert_close(inside.last.parameters[name].sample_norms, stats.sample_norms, rtol=1e-9, atol=1e-12)
