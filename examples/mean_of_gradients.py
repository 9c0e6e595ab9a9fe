"""Three things about averaging that are easy to get wrong.

1. The gradient of the mean loss is the mean of the per-sample gradients: all are taken with respect to the same
   parameters.
2. Averaging the errors first and backpropagating once is something else. With x = 1, targets 2 and 4 and a prediction
   of 3, each squared error is 1, and so is their average; the gradients are +2 and -2, and their average is 0.
3. Averaging the inputs (or activations) first is something else too, wherever the model is not linear.
"""

import torch
from torch import nn

import gradscope


def mean_loss(model, batch):
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


def gradient_of(model, batch):
    return torch.cat([g.flatten() for g in torch.autograd.grad(mean_loss(model, batch), tuple(model.parameters()))])


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
batch = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
gradient = gradient_of(model, batch)
per_sample = gradscope.reference.per_sample_gradients(model, mean_loss, batch)
mean = torch.cat([gradients.mean(0).flatten() for gradients in per_sample.values()])
equal = torch.allclose(mean, gradient, rtol=0, atol=1e-14)
print(f"1. the gradient of the mean loss is the mean of the per-sample gradients: {equal}")

line = nn.Linear(1, 1, bias=False).double()
nn.init.constant_(line.weight, 3.0)
two = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[2.0], [4.0]], dtype=torch.float64)
with gradscope.watch(line) as scope:
    error = mean_loss(line, two)
    error.backward()
    total = scope.step().total
gradients = gradscope.reference.per_sample_gradients(line, mean_loss, two)["weight"].flatten()
print(f"2. mean squared error {error.item():g}, gradients {gradients.tolist()}, their mean {gradients.mean().item():g}")
print(f"   (one sample with a squared error of {error.item():g} alone would give 2 or -2)")
print(f"   gradscope: norms {total.sample_norms.tolist()}, variance {total.trace_cov:g}, resolved: {total.resolved}")

averaged_first = gradient_of(model, tuple(part.mean(0, keepdim=True) for part in batch))
off = (averaged_first - gradient).norm() / gradient.norm()
print(f"3. averaging the inputs and targets first: off by {off:.0%} of the gradient")
