"""Three things about averaging that are easy to get wrong.

1. The gradient of the mean loss is the mean of the per-sample gradients: both are taken with respect to the same parameters.
2. Averaging the errors first and backpropagating once is something else. With x = 1, targets 2 and 4 and a prediction of 3, each
   squared error is 1, and so is their average; but the gradients are +2 and -2, and their average is 0.
3. Averaging the inputs (or activations) first is something else too, wherever the model is not linear.
"""

import torch
from torch import nn

import gradscope


def mean_loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
batch = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
mean_loss(model, batch).backward()
per_sample = gradscope.reference.per_sample_gradients(model, mean_loss, batch)
apart = max((per_sample[name].mean(0) - p.grad).abs().max().item() for name, p in model.named_parameters())
print(
    f"1. gradient of the mean loss = mean of the per-sample gradients: {apart < 1e-15} (largest difference {apart:.0e})"
)

line = nn.Linear(1, 1, bias=False).double()
nn.init.constant_(line.weight, 3.0)
two = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[2.0], [4.0]], dtype=torch.float64)
with gradscope.watch(line) as scope:
    loss = mean_loss(line, two)
    loss.backward()
    total = scope.step().total
gradients = gradscope.reference.per_sample_gradients(line, mean_loss, two)["weight"].flatten()
print(f"2. mean squared error {loss.item():g}, gradients {gradients.tolist()}, their mean {line.weight.grad.item():g}")
print(
    f"   one sample with that error would give a gradient of 2 or -2; the figures: |mean gradient| {total.grad_norm:g},"
)
print(f"   per-sample norms {total.sample_norms.tolist()}, variance {total.trace_cov:g}, resolved: {total.resolved}")

model.zero_grad()
mean_loss(model, batch).backward()
right = torch.cat([p.grad.flatten() for p in model.parameters()])
model.zero_grad()
mean_loss(model, tuple(part.mean(0, keepdim=True) for part in batch)).backward()
wrong = torch.cat([p.grad.flatten() for p in model.parameters()])
print(f"3. averaging the inputs first: off by {(wrong - right).norm() / right.norm():.0%} of the gradient")
