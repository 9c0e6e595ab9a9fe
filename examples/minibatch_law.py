"""What a minibatch's gradient is, by counting all of them.

From N samples there are C(N, M) minibatches of size M. For every M from 1 to N, the mean of all their gradients is the
full gradient, and their covariance is S / M * (N - M) / (N - 1), where S is the covariance of single samples (over
N). Nothing is estimated here: each minibatch is backpropagated.
"""

from itertools import combinations

import torch
from torch import nn

N = 8
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
x, y = torch.randn(N, 3, dtype=torch.float64), torch.randn(N, 1, dtype=torch.float64)


def gradient(samples):
    model.zero_grad()
    nn.functional.mse_loss(model(x[samples]), y[samples]).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def covariance(gradients):
    return torch.cov(gradients.T, correction=0)


full = gradient(list(range(N)))
single = covariance(torch.stack([gradient([i]) for i in range(N)]))
print(" M  minibatches  mean = full gradient  trace of covariance    law says  equal in every entry")
for size in range(1, N + 1):
    gradients = torch.stack([gradient(list(chosen)) for chosen in combinations(range(N), size)])
    unbiased = torch.allclose(gradients.mean(0), full, rtol=0, atol=1e-13)
    found, law = covariance(gradients), single / size * (N - size) / (N - 1)
    equal = torch.allclose(found, law, rtol=0, atol=1e-13)
    print(f"{size:2}  {len(gradients):11}  {unbiased!s:>20}  {found.trace():19.6f}  {law.trace():10.6f}  {equal!s:>20}")
