"""Uneven micro-batches, and a last window that is shorter than the others: each window is still one minibatch.

The loss of each micro-batch is a sum, divided by the samples of the whole window. Dividing means by the number of
micro-batches instead would weigh the samples of small micro-batches more.
"""

import torch
from torch import nn

import gradscope

torch.manual_seed(0)
inputs = torch.randn(43, 4, dtype=torch.float64)
targets = inputs.sum(1, keepdim=True) + torch.randn(43, 1, dtype=torch.float64)
WINDOWS = [[8, 3, 5], [1, 9, 6], [7, 4]]  # sizes of the micro-batches; 16 samples, 16, and the 11 that are left


def model_and_optimizer():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(windows):
    model, optimizer = model_and_optimizer()
    reports, rows = [], iter(torch.arange(len(inputs)))
    with gradscope.watch(model, optimizer) as scope:
        for sizes in windows:
            for size in sizes:
                chosen = torch.stack([next(rows) for _ in range(size)])
                loss = nn.functional.mse_loss(model(inputs[chosen]), targets[chosen], reduction="sum") / sum(sizes)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            reports.append(scope.last)
    return reports


in_pieces = train(WINDOWS)
at_once = train([[sum(sizes)] for sizes in WINDOWS])
for sizes, pieces, whole in zip(WINDOWS, in_pieces, at_once, strict=True):
    print(f"micro-batches {sizes}: {pieces.window_samples} samples in {pieces.window_micro_steps} micro-steps")
    for figure in ("grad_norm", "trace_cov", "grad_sq"):
        ours, truth = getattr(pieces.total, figure), getattr(whole.total, figure)
        equal = abs(ours - truth) < 1e-9 * abs(truth)
        print(f"  {figure:<10} {ours:9.5f}   in one pass {truth:9.5f}   equal: {equal}")
