"""A script that looks for itself, before or after the first step."""

import sys

import torch
from torch import nn

import gradscope

torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.1)


def train():
    model(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


if sys.argv[-1] == "late":
    train()
with gradscope.watch(model, optimizer) as scope:
    for _ in range(4):
        train()
    print(scope.report().windows)
