"""Parts of one model that are called one by one, and an optimizer that is made anew half-way."""

import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
encoder = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
decoder = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 6))
for _ in range(2):
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])
    for _ in range(3):
        x = torch.randn(8, 6)
        loss = (decoder(encoder(x)) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(loss.item().hex())
