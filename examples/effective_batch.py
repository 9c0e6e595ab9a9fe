"""An effective batch of 50, computed in 10 passes of 5, because 50 would not fit: the same gradient, the same figures.

How many samples the optimizer averages over (the effective minibatch) and how many the hardware computes at once (the
micro-batch) are independent choices. Batch normalisation in training mode would couple them; GroupNorm does not.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import gradscope

EFFECTIVE = 50
digits = load_digits()
images = torch.from_numpy(digits.data[:EFFECTIVE]).reshape(-1, 1, 8, 8) / 16
labels = torch.from_numpy(digits.target[:EFFECTIVE])


def window(micro_batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    passes = EFFECTIVE // micro_batch
    with gradscope.watch(model, optimizer) as scope:
        for x, y in zip(images.split(micro_batch), labels.split(micro_batch), strict=True):
            loss = nn.functional.cross_entropy(model(x), y) / passes
            loss.backward()
        optimizer.step()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), scope.last


def equal(ours, truth):
    return torch.allclose(torch.as_tensor(ours), torch.as_tensor(truth), rtol=1e-9, atol=1e-15)


gradient_at_once, at_once = window(micro_batch=EFFECTIVE)
for micro_batch in (5, 1):
    gradient, report = window(micro_batch)
    print(f"{report.window_samples} samples in {report.window_micro_steps} passes of {micro_batch}, against one pass:")
    print(f"  gradient equal:                {equal(gradient, gradient_at_once)}")
    print(f"  50 per-sample norms equal:     {equal(report.total.sample_norms, at_once.total.sample_norms)}")
    print(f"  variance across samples equal: {equal(report.total.trace_cov, at_once.total.trace_cov)}")
