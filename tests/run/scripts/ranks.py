"""DistributedDataParallel on as many ranks as there are."""

import os

import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(rank)
for _ in range(4):
    loss = model(torch.randn(8, 6)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
os.write(1, f"{rank} {loss.item().hex()}\n".encode())  # in one piece, beside the other rank's
torch.distributed.destroy_process_group()
