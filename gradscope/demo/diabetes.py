"""Progression of diabetes a year after ten measurements were taken, and a small regression network."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradscope.demo.bundled import bundled, split
from gradscope.demo.task import Problem


class DiabetesNet(nn.Module):
    """Two hidden layers: ``[n, 10]`` measurements to ``[n]`` standardised progressions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 32)
        self.second = nn.Linear(32, 32)
        self.head = nn.Linear(32, 1)

    def forward(self, measurements: Tensor) -> Tensor:
        """Predicted progression, in standard deviations from the mean patient."""
        x = torch.tanh(self.first(measurements))
        x = torch.tanh(self.second(x))
        predicted: Tensor = self.head(x)
        return predicted.squeeze(1)


def problem() -> Problem:
    """Predict the progression; a fifth of the 442 patients is held out."""
    inputs, targets = bundled("diabetes")
    samples, held_out, truth = split(_standardised(inputs), _standardised(targets))
    model = DiabetesNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Problem(model, optimizer, F.mse_loss, samples, partial(_explained, held_out, truth))


def _standardised(values: Tensor) -> Tensor:
    return ((values - values.mean(0)) / values.std(0)).float()


@torch.no_grad()
def _explained(measurements: Tensor, truth: Tensor, model: nn.Module) -> str:
    unexplained = F.mse_loss(model(measurements), truth) / truth.var(unbiased=False)
    return f"{1 - unexplained.item():.0%} of the variance among {len(truth)} held-out patients explained"
