"""A linear layer without further dimensions: each sample's contribution is one outer product, and its bias's one row of it."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.contributions.contribution import Contribution, Probe
from gradscope.contributions.dense import Dense
from gradscope.contributions.figures import Figures
from gradscope.contributions.outer import Outer
from gradscope.contributions.precision import BLOCK, row_squares, working
from gradscope.contributions.workspace import Workspace


class Row(Outer):
    """``hᵢ = rowᵢ ⊗ inᵢ``: what a small step computes most often, in as few operators as there can be.

    Args:
        x: ``[n, d]``, the layer's input (conjugated, if complex).
        row: ``[n, p]``, gradient of its output.
        shape: the parameter's, ``[p, d]``.
    """

    def __init__(self, x: Tensor, row: Tensor, shape: torch.Size) -> None:
        self.x = working(x)
        self.row = working(row)
        self.shape = shape
        #: What the bias asks for as well.
        self.lengths: Tensor | None = None
        self.left: tuple[Tensor, list[Tensor]] | None = None

    @property
    def inputs(self) -> Tensor:  # type: ignore[override]
        """``[n, 1, 1, d]``."""
        return self.x[:, None, None]

    @property
    def grads(self) -> Tensor:  # type: ignore[override]
        """``[n, 1, 1, p]``."""
        return self.row[:, None, None]

    @property
    def samples(self) -> int:
        return self.x.shape[0]

    @property
    def nbytes(self) -> int:
        return self.x.nbytes + self.row.nbytes

    def figures(
        self, probe: Probe | None = None, *, moments: bool = False, workspace: Workspace | None = None
    ) -> Figures:
        return Contribution.figures(self, probe, moments=moments)

    def squared_norms(self) -> Tensor:
        if max(self.x.shape[1], self.row.shape[1]) > BLOCK:
            return row_squares(self.x) * row_squares(self.row)
        self.lengths = torch.linalg.vector_norm(self.row, dim=1)
        return (torch.linalg.vector_norm(self.x, dim=1) * self.lengths).double().square_()

    def probe(self, probe: Probe) -> Tensor:
        along = [self.row.mv(direction) for direction in probe.lefts]
        self.left = probe.left, along
        products = [one * self.x.mv(right) for one, right in zip(along, probe.rights, strict=True)]
        return torch.stack(products, dim=1)


class RowBias(Dense):
    """A linear layer's bias: the rows themselves, whose norms and projections the weight has computed already.

    Args:
        weight: the weight's contributions.
    """

    def __init__(self, weight: Row) -> None:
        super().__init__(weight.row)
        self.weight = weight

    def squared_norms(self) -> Tensor:
        lengths = self.weight.lengths
        return super().squared_norms() if lengths is None else lengths.double().square_()

    def probe(self, probe: Probe) -> Tensor:
        known = self.weight.left
        if known is not None and known[0] is probe.left:
            return torch.stack(known[1], dim=1)
        return super().probe(probe)
