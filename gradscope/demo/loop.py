"""The training loop that the demo runs, and that ``gradscope demo --show-code`` shows: plain PyTorch plus one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.optim import Optimizer

import gradscope
from gradscope.demo.task import Criterion


def train(
    model: nn.Module,
    optimizer: Optimizer,
    criterion: Criterion,
    loader: Iterable[tuple[Tensor, Tensor]],
    accumulate: int,
    log: str | None,
    show: Callable[[float, gradscope.Scope], None],
) -> gradscope.Scope:
    """Accumulate ``accumulate`` micro-batches into each step of the optimizer."""
    scope = gradscope.watch(model, optimizer)  # the one line
    if log:
        scope.log_to(log)
    for step, (x, y) in enumerate(loader, start=1):
        loss = criterion(model(x), y) / accumulate
        loss.backward()  # a micro-step
        if step % accumulate == 0:
            optimizer.step()  # closes the window
            optimizer.zero_grad()
            show(accumulate * loss.item(), scope)
    return scope
