"""LBFGS, whose step calls backward several times; a new model in each of three rounds, the old ones dropped."""

import gc
import weakref

import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
dropped = []


def train():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    dropped.append(weakref.ref(model))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=3)
    x, y = torch.randn(16, 6).double(), torch.randn(16, 3).double()

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        print(optimizer.step(closure).item().hex())


for _ in range(3):
    train()
gc.collect()
print("alive", sum(model() is not None for model in dropped[:-1]))
