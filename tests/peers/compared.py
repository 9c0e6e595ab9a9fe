"""One layer or small model, against one backward per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

import gradscope


def rows(output: Any, batch_dim: int) -> Tensor:
    """One loss per sample that no element of the output is left out of."""
    flat = output.movedim(batch_dim, 0).reshape(output.shape[batch_dim], -1)
    return (flat * (1 + torch.arange(flat.shape[1]).remainder(3) / 2) + 0.7).sin().sum(1)


def compare(
    model: Module, inputs: tuple[Any, ...], *, batch_dim: int = 0, losses: Callable[[Any], Tensor] | None = None
) -> dict[str, str]:
    """Every trained parameter's per-sample norms agree; returns how each was measured."""
    model = model.double()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    each = losses or (lambda output: rows(output, batch_dim))
    optimizer = torch.optim.SGD(parameters.values(), lr=0.0)
    with gradscope.watch(model, optimizer, batch_dim=batch_dim) as scope:
        found = each(model(*inputs))
        found.mean().backward()
        optimizer.step()
        report = scope.last
    expected = [
        torch.autograd.grad(one, list(parameters.values()), retain_graph=True, allow_unused=True)
        for one in each(model(*inputs))
    ]
    for k, name in enumerate(parameters):
        norms = torch.stack([torch.zeros((), dtype=torch.float64) if g[k] is None else g[k].norm() for g in expected])
        coverage = report.coverage[name]
        if coverage.status == "no gradient":
            assert not norms.any(), name
            continue
        assert coverage.status == "exact", (name, coverage)
        torch.testing.assert_close(report.parameters[name].sample_norms, norms, rtol=1e-8, atol=1e-10)
    return {name: report.coverage[name].rule for name in parameters}
