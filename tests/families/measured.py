"""What gradscope says of one family, beside what a loop over single samples says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as tree

import gradscope
from families.family import Family, N

#: What is learnt in the first window must hold in the next.
WINDOWS = 2
PER_SAMPLE = ("exact", "second pass")


def built(family: Family, dtype: torch.dtype) -> Module:
    """The same model at every call."""
    torch.manual_seed(1)
    return family.build()._apply(lambda tensor: cast(tensor, dtype))


def batch_of(family: Family, dtype: torch.dtype) -> Any:
    """The same batch at every call."""
    torch.manual_seed(2)
    return tree.tree_map(lambda leaf: cast(leaf, dtype) if isinstance(leaf, Tensor) else leaf, family.batch())


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Real numbers in this dtype, complex ones in its complex twin, and integers as they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def truth(family: Family) -> dict[str, Tensor]:
    """``‖gᵢ‖`` of every trained parameter, float64 ``[N]``, by one backward per sample."""
    model = built(family, family.oracle)
    names, parameters = zip(*((k, p) for k, p in model.named_parameters() if p.requires_grad), strict=True)
    batch = batch_of(family, family.oracle)
    for _ in range(WINDOWS):
        # Some models change their buffers in every forward (spectral norm).
        torch.manual_seed(5)
        losses = family.losses(model, batch)
    rows = [torch.autograd.grad(one, parameters, retain_graph=True, allow_unused=True) for one in losses]
    return {
        name: torch.stack(
            [torch.zeros(()).double() if row[k] is None else row[k].to_dense().norm().double() for row in rows]
        )
        for k, name in enumerate(names)
    }


def report_of(
    family: Family, windows: int = WINDOWS, dtype: torch.dtype = torch.float32, **watch: Any
) -> gradscope.Report:
    """The report of the last of some equal windows."""
    model = built(family, dtype)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    batch = batch_of(family, dtype)
    with gradscope.watch(model, optimizer, batch_dim=family.batch_dim, **watch) as scope:
        for _ in range(windows):
            torch.manual_seed(5)
            (family.losses(model, batch).sum() / N).backward()
            optimizer.step()
            optimizer.zero_grad()
        report = scope.last
    assert report is not None
    return report


@dataclass(frozen=True)
class Outcome:
    """One family's measurement.

    Attributes:
        report: gradscope's.
        truth: the oracle's norms.
        sizes: elements of every trained parameter that is reached.
    """

    report: gradscope.Report
    truth: dict[str, Tensor]
    sizes: dict[str, int]

    def share(self, *statuses: str) -> float:
        """Which part of the trained elements has one of these statuses."""
        found = sum(size for name, size in self.sizes.items() if self.report.coverage[name].status in statuses)
        return found / sum(self.sizes.values())

    def errors(self) -> dict[str, float]:
        """How far each parameter's per-sample norms are from the oracle's, relative to them.

        Gradients that are zero by structure (a key's bias in attention) are rounding of their model's size.
        """
        total = float(torch.stack([norms.square().sum() for norms in self.truth.values()]).sum().sqrt())
        found = {}
        for name in self.sizes:
            norms = None if name not in self.report.parameters else self.report.parameters[name].sample_norms
            if norms is not None and self.report.coverage[name].status in PER_SAMPLE:
                scale = max(float(self.truth[name].norm()), 1e-4 * total)
                found[name] = float((norms.cpu() - self.truth[name]).norm()) / scale
        return found


def measure(family: Family, **watch: Any) -> Outcome:
    """The family, watched."""
    report, expected = report_of(family, **watch), truth(family)
    numel = {name: p.numel() for name, p in built(family, torch.float32).named_parameters()}
    reached = {k: numel[k] for k in expected if report.coverage[k].status not in ("no gradient", "frozen")}
    return Outcome(report, expected, reached)
