"""Problems of the zoo on another device."""

import pytest
import torch
from torch.utils import _pytree as tree
from zoo.problem import N

import gradscope

#: What torch's own step does not do on every device.
STAYS = ("LSTM, packed", "GRU, packed")


def moved(value, device):
    """A structure of tensors on a device."""
    return tree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, value)


def on_host(value):
    return moved(value, "cpu")


class Elsewhere:
    """A problem whose model and batch lie on a device.

    Args:
        problem: of the zoo.
        dtype: of the model.
        device: where it lies.
        lr: the optimizer's.
    """

    def __init__(self, problem, dtype, device, lr=0.0):
        self.problem, self.device = problem, device
        self.model = problem.model(dtype).to(device)
        batch = problem.batch(dtype)
        # Packed sequences want their lengths on the host.
        self.batch = (moved(batch[0], device), *batch[1:]) if problem.name in STAYS else moved(batch, device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9 if lr else 0.0)
        self.divisor = problem.divisor(problem.batch(dtype))

    def window(self, parts=1):
        """Forward and backward of one effective minibatch, and the optimizer's step."""
        for k in range(parts):
            rows = list(range(k * N // parts, (k + 1) * N // parts))
            with torch.device(self.device):
                batch = self.problem.take(self.batch, rows) if parts > 1 else self.batch
                loss = self.problem.total(self.model, batch) / self.divisor
            loss.backward()
        self.optimizer.step()

    def require(self):
        """Skip where torch itself cannot run it here."""
        try:
            self.window()
        except (NotImplementedError, RuntimeError) as error:
            pytest.skip(f"a plain step fails here: {error}")
        self.optimizer.zero_grad()

    def watch(self, **options):
        return gradscope.watch(self.model, self.optimizer, batch_dim=self.problem.batch_dim, **options)
