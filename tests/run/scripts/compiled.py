"""torch.compile in the place that the argument names."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
how = sys.argv[-1]
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
run = torch.compile(model, backend="aot_eager") if how in ("before", "warm") else model
if how == "warm":
    run(torch.randn(8, 6).double()).sum().backward()
    model.zero_grad()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
if how == "after":
    run = torch.compile(model, backend="aot_eager")
if how == "itself":
    model.compile(backend="aot_eager")
if how == "whole":
    run = torch.compile(model, backend="aot_eager", fullgraph=True)


def loss_of(x, y):
    return nn.functional.cross_entropy(run(x), y)


def train(x, y):
    loss = loss_of(x, y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


if how == "function":
    loss_of = torch.compile(loss_of, backend="aot_eager")
if how == "whole function":
    loss_of = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
if how == "step":
    train = torch.compile(train, backend="aot_eager")
for _ in range(5):
    print(f"{train(torch.randn(8, 6).double(), torch.randint(3, (8,))).item():.12f}")
