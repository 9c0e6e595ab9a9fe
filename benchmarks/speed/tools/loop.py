"""One backward per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.speed.tools.tool import Figures, Runner


class Loop(Runner):
    """Norms of gradients that exist one sample at a time."""

    found: dict[str, Tensor]

    def step(self) -> None:
        leaves, rows = list(self.parameters.values()), []
        for i in range(self.problem.samples):
            gradients = torch.autograd.grad(self.problem.rows(i, i + 1).loss(), leaves)
            rows.append(torch.stack(torch._foreach_norm(gradients)))
            for leaf, gradient in zip(leaves, gradients, strict=True):
                gradient = gradient / self.problem.samples
                leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
        self.found = dict(zip(self.parameters, torch.stack(rows, 1), strict=True))

    def figures(self) -> Figures:
        return Figures(norms=self.found)
