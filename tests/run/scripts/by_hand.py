"""Training that no backward() or no optimizer is part of, or none of a model; the argument says which."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
how = sys.argv[-1]
model = nn.Linear(3, 2)
table = torch.zeros(3, requires_grad=True)
if how != "update":
    optimizer = torch.optim.SGD([table] if how == "tensor" else model.parameters(), lr=0.1)
for _ in range(4):
    x = torch.randn(8, 3)
    if how == "gradient":
        for parameter, grad in zip(
            model.parameters(), torch.autograd.grad(model(x).sum(), list(model.parameters())), strict=True
        ):
            parameter.grad = grad
        optimizer.step()
    elif how == "tensor":
        (x @ table).sum().backward()
        optimizer.step()
    elif how == "nothing":
        model(x).sum().backward()
    elif how == "forward":
        model.forward(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    else:
        model(x).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
