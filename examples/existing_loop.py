"""An existing loop, one line added: the training stays the same to the last bit, and there is a report to read."""

from contextlib import nullcontext

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradscope


def train(watched):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    criterion = nn.MSELoss()
    loader = DataLoader(patients(), batch_size=32, shuffle=True, drop_last=True)

    with gradscope.watch(model, optimizer) if watched else nullcontext() as scope:  # the one line
        for _ in range(5):
            for x, y in loader:
                optimizer.zero_grad()
                loss = criterion(model(x), y)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
        return model.state_dict(), scope.report() if watched else None


def patients():
    measurements, progression = (torch.from_numpy(found).float() for found in load_diabetes(return_X_y=True))
    standardised = (progression - progression.mean()) / progression.std()
    return TensorDataset(20 * measurements, standardised.unsqueeze(1))


plain, _ = train(watched=False)
watched, report = train(watched=True)
print(report)
print()
print(f"windows seen: {report.last_window}, averaged: {report.windows}, samples in each: {report.window_samples}")
same = all(torch.equal(plain[name], watched[name]) for name in plain)
print(f"weights after training, with and without gradscope, bitwise equal: {same}")
