"""A model that keeps all its layers in one attribute."""

import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
body = nn.ModuleDict({"first": nn.Linear(6, 8), "last": nn.Linear(8, 3)})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body["last"](torch.relu(self.body["first"](x)))


model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    model(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
