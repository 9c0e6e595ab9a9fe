"""One window of a problem, as gradscope sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import gradscope
from zoo.problem import N, Problem


def train_window(
    problem: Problem, model: Any, optimizer: Any, *, split: Sequence[int] = (N,), order: Sequence[int] = range(N),
    scale: float = 1.0,
) -> None:  # fmt: skip
    """One effective minibatch in micro-steps of these sizes, its samples in this order, its loss times ``scale``."""
    dtype = next(p for p in model.parameters()).dtype.to_real()
    batch = problem.batch(dtype)
    divisor = problem.divisor(batch)
    rest = list(order)
    for size in split:
        part, rest = rest[:size], rest[size:]
        micro_batch = problem.take(batch, part) if len(split) > 1 or part != list(range(N)) else batch
        (scale * problem.total(model, micro_batch) / divisor).backward()
    optimizer.step()


def measure(
    problem: Problem, dtype: torch.dtype = torch.float64, *, windows: int = 1, watch: dict[str, Any] | None = None,
    **how: Any,
) -> gradscope.Report:  # fmt: skip
    """The report of the last of some equal windows; the optimizer moves nothing."""
    model = problem.model(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradscope.watch(model, optimizer, batch_dim=problem.batch_dim, **(watch or {})) as scope:
        for _ in range(windows):
            train_window(problem, model, optimizer, **how)
            optimizer.zero_grad()
        report = scope.last
    assert report is not None
    return report
