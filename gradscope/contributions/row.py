"""A linear layer without further dimensions: each sample's contribution is one outer product, and its bias's one row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.dense import Dense
from gradscope.contributions.figures import Figures
from gradscope.contributions.outer import Outer
from gradscope.contributions.precision import BLOCK, row_squares, working
from gradscope.contributions.workspace import Workspace
from gradscope.kernels import available, rows_read
from gradscope.wide import widen


class SketchMemory:
    """Memory for the sketches of one micro-step's layers.

    Args:
        numbers: ``[places, 4, n]``, contiguous.

    Attributes:
        dtype: theirs.
        used: how many places are.
    """

    __slots__ = ("dtype", "numbers", "used")

    def __init__(self, numbers: Tensor, used: int = 0) -> None:
        self.numbers = numbers
        self.dtype = numbers.dtype
        self.used = used

    @classmethod
    def of(cls, places: int, samples: int, dtype: torch.dtype) -> SketchMemory:
        """Empty, on the CPU."""
        return cls(torch.empty(places, 4, samples, dtype=dtype, device="cpu"))

    def on_host(self) -> SketchMemory:
        """The same, on the CPU."""
        return self if self.numbers.is_cpu else SketchMemory(self.numbers.cpu(), self.used)

    def has_room(self, dtype: torch.dtype) -> bool:
        """Whether one more sketch of this precision fits in."""
        return self.used < self.numbers.shape[0] and self.dtype is dtype


class RowSketch:
    """Four numbers a sample, from which all figures of a linear layer's weight and bias follow.

    Attributes:
        memory: where they are: ``‖inᵢ‖``, ``⟨inᵢ, right⟩``, ``‖rowᵢ‖`` and ``⟨rowᵢ, left⟩``.
        place: in which place of it.
    """

    __slots__ = ("memory", "place")

    def __init__(self, memory: SketchMemory, place: int = 0) -> None:
        self.memory = memory
        self.place = place

    @property
    def alike(self) -> tuple[object, ...]:
        """What sketches that are looked at together have in common."""
        return self.memory.dtype, self.memory.numbers.device


#: Memory for the squares of a layer's input and of its output's gradient.
Squares = tuple[Tensor, Tensor]


def tables(sketches: Sequence[RowSketch]) -> Tensor:
    """Their numbers, ``[S, 4, n]``."""
    memories = {id(sketch.memory): sketch.memory for sketch in sketches}
    starts = accumulate((memory.used for memory in memories.values()), initial=0)
    start = dict(zip(memories, starts, strict=False))
    whole = torch.cat([memory.numbers[: memory.used] for memory in memories.values()])
    places = [start[id(sketch.memory)] + sketch.place for sketch in sketches]
    return whole if places == list(range(whole.shape[0])) else whole[places]


def sketch_rows(
    x: Tensor, row: Tensor, probe: Probe, squares: Squares | None = None, memory: SketchMemory | None = None
) -> RowSketch | None:
    """Those numbers of rows ``[n, d]`` and ``[n, p]`` along a single direction; None where they would lose digits.

    Args:
        x: the layer's input.
        row: gradient of its output.
        probe: the direction.
        squares: memory for each number's square, where these are wanted too.
        memory: where the numbers go; it must have room for them.
    """
    if available():
        if memory is None:
            memory = SketchMemory.of(1, x.shape[0], x.dtype)
        place = memory.used
        if rows_read(x, probe.rights[0], row, probe.lefts[0], memory.numbers, place, squares):
            memory.used = place + 1
            return RowSketch(memory, place)
    if max(x.shape[1], row.shape[1]) > BLOCK:
        return None
    if squares is not None:
        torch.mul(x, x, out=squares[0])
        torch.mul(row, row, out=squares[1])
    length = torch.linalg.vector_norm
    numbers = (length(x, dim=1), x.mv(probe.rights[0]), length(row, dim=1), row.mv(probe.lefts[0]))
    return RowSketch(SketchMemory(torch.stack(numbers).unsqueeze(0), used=1))


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
    inputs, right, rows, left = tables(sketches).unbind(1)
    weights, biases = widen(inputs * rows).square_(), widen(rows).square_()
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
        squares: Tensor = widen(torch.linalg.vector_norm(self.x, dim=1) * self.lengths).square_()
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
        return super().squared_norms() if lengths is None else widen(lengths).square_()

    def probe(self, probe: Probe) -> Tensor:
        known = self.weight.left
        if known is not None and known[0] is probe.left:
            return torch.stack(known[1], dim=1)
        return super().probe(probe)
