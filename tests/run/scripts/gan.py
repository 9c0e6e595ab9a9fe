"""Two models and two optimizers, as variables of the script."""

import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, z):
        return self.net(z)


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x):
        return self.net(x).squeeze(1)


generator, critic = Generator(), Critic()
optimizer_d = torch.optim.Adam(critic.parameters(), 2e-3)
optimizer_g = torch.optim.Adam(generator.parameters(), 2e-3)
criterion = nn.BCEWithLogitsLoss()
for _ in range(6):
    critic.zero_grad()
    real = criterion(critic(torch.randn(8, 6)), torch.ones(8))
    real.backward()
    made = generator(torch.randn(8, 4))
    fake = criterion(critic(made.detach()), torch.zeros(8))
    fake.backward()
    optimizer_d.step()
    generator.zero_grad()
    fooled = criterion(critic(made), torch.ones(8))
    fooled.backward()
    optimizer_g.step()
    print(real.item().hex(), fake.item().hex(), fooled.item().hex())
