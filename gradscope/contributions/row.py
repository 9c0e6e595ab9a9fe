"""A linear layer without further dimensions: each sample's contribution is one outer product, and its bias's one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.dense import Dense
from gradscope.contributions.figures import Figures
from gradscope.contributions.outer import Outer
from gradscope.contributions.precision import BLOCK, row_squares, working
from gradscope.contributions.workspace import Workspace
from gradscope.kernels import rows_read, serves


class RowSketch(NamedTuple):
    """Four numbers a sample, from which all figures of a linear layer's weight and bias follow.

    Attributes:
        table: ``‖inᵢ‖``, ``⟨inᵢ, right⟩``, ``‖rowᵢ‖`` and ``⟨rowᵢ, left⟩``, ``[4, n]``.
    """

    table: Tensor


#: Memory for the squares of a layer's input and of its output's gradient.
Squares = tuple[Tensor, Tensor]


def sketch_rows(x: Tensor, row: Tensor, probe: Probe, squares: Squares | None = None) -> RowSketch | None:
    """Those numbers of rows ``[n, d]`` and ``[n, p]`` along a single direction; None where they would lose digits.

    Args:
        x: the layer's input.
        row: gradient of its output.
        probe: the direction.
        squares: memory for each number's square, where these are wanted too.
    """
    if x.stride(1) == row.stride(1) == 1 and serves(x, row):
        return RowSketch(rows_read(x, probe.rights[0], row, probe.lefts[0], squares))
    if max(x.shape[1], row.shape[1]) > BLOCK:
        return None
    if squares is not None:
        torch.mul(x, x, out=squares[0])
        torch.mul(row, row, out=squares[1])
    length = torch.linalg.vector_norm
    numbers = (length(x, dim=1), x.mv(probe.rights[0]), length(row, dim=1), row.mv(probe.lefts[0]))
    return RowSketch(torch.stack(numbers))


def row_moments(squares: Squares, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """``Σᵢ hᵢ²`` elementwise of the weight, ``[p, d]``, and of the bias, ``[p]``, in memory that is lent.

    Args:
        squares: of the rows' numbers.
        workspace: where the memory comes from.
    """
    inputs, rows = squares
    weight = workspace.lend(torch.Size((rows.shape[1], inputs.shape[1])), inputs)
    bias = workspace.lend(rows.shape[1:], rows)
    return torch.mm(rows.T, inputs, out=weight), torch.sum(rows, 0, out=bias)


def settle(sketches: Sequence[RowSketch]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per layer: the weight's ``‖hᵢ‖²`` and ``⟨hᵢ, R⟩``, and the bias's; all layers at once, since each operator counts.

    Returns:
        For each sketch ``[n]`` float64, ``[n, 1]``, ``[n]`` float64, ``[n, 1]``.
    """
    inputs, right, rows, left = torch.stack([sketch.table for sketch in sketches]).unbind(1)
    weights, biases = (inputs * rows).double().square_(), rows.double().square_()
    probes = ((right * left).unsqueeze(2), left.unsqueeze(2))
    columns = (weights.unbind(), probes[0].unbind(), biases.unbind(), probes[1].unbind())
    return list(zip(*columns, strict=True))


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
        #: Its sketch, and the directions along which it looks, where figures are computed for all layers at once.
        self.sketched: RowSketch | None = None
        self.along: Tensor | None = None
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
        along = None if probe is None else self.probe(probe)
        return Figures(self.squared_norms(), along, self._by_squares(workspace) if moments else None)

    @property
    def short(self) -> bool:
        """Whether norms in the rows' own precision keep their digits."""
        return max(self.x.shape[1], self.row.shape[1]) <= BLOCK

    def sketch(self, probe: Probe) -> RowSketch:
        """What its figures along one direction are made of, and its bias's; the rows need not be kept for it."""
        self.along = probe.left
        found = sketch_rows(self.x, self.row, probe)
        if found is None:
            raise ValueError("rows this long have no sketch")
        self.sketched = found
        return found

    def squared_norms(self) -> Tensor:
        if not self.short:
            return row_squares(self.x) * row_squares(self.row)
        self.lengths = torch.linalg.vector_norm(self.row, dim=1)
        squares: Tensor = (torch.linalg.vector_norm(self.x, dim=1) * self.lengths).double().square_()
        return squares

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
