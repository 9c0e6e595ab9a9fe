"""What n samples added to one parameter's gradient, described by whatever is cheapest to keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gradscope.contributions.figures import Figures
from gradscope.contributions.precision import working
from gradscope.contributions.workspace import Workspace

#: How many left and how many right halves of directions are drawn; each left is paired with each right.
LEFTS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """k random directions ``Rⱼ = leftⱼ ⊗ rightⱼ`` in the space of one parameter.

    Rank one, so that ``⟨hᵢ, R⟩`` of an outer product needs two matrix-vector products instead of the gradient itself. Two
    directions, since a single one is blind to some errors by chance (1 % quantile: 0.012 of the error's norm).

    Attributes:
        left: ``[k, s₀]`` over the parameter's first dimension.
        right: ``[k, m]`` over all further dimensions, flattened.
    """

    left: Tensor
    right: Tensor
    #: The same one by one; each is used several times a window.
    lefts: tuple[Tensor, ...] = field(init=False)
    rights: tuple[Tensor, ...] = field(init=False)
    #: Single directions, one for each ordinary window: every left of a few with every right, so that what one is blind to the
    #: next ones see.
    parts: tuple[Probe, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "lefts", self.left.unbind())
        object.__setattr__(self, "rights", self.right.unbind())

    @property
    def single(self) -> tuple[Tensor, Tensor] | None:
        """Left and right, where there is one direction, as in ordinary windows."""
        return (self.lefts[0], self.rights[0]) if len(self.lefts) == 1 else None

    @classmethod
    def draw(cls, like: Tensor, generator: torch.Generator, k: int = 2, weight: Probe | None = None) -> Probe:
        """Random directions of variance one for a parameter's shape, from a private generator on the CPU.

        Args:
            like: the parameter.
            generator: where the numbers come from.
            k: how many directions.
            weight: directions of the weight whose bias this is: what is projected for the one is projected for the other.
        """
        if weight is not None:
            ones = weight.left.new_ones(k, 1)
            one = ones[:1]
            return cls(weight.left, ones, tuple(cls(part.left, one) for part in weight.parts))
        first = like.shape[0] if like.dim() else 1
        rest = like.shape[1:].numel()
        real = torch.float64 if like.dtype in (torch.float64, torch.complex128) else torch.float32
        left = torch.randn(LEFTS, first, generator=generator, dtype=real, device="cpu")
        # With a single column left alone is already a full-rank direction.
        right = (
            torch.randn(LEFTS, rest, generator=generator, dtype=real, device="cpu")
            if rest > 1
            else torch.ones(LEFTS, rest, dtype=real, device="cpu")
        )
        dtype = working(like).dtype
        left, right = left.to(like.device, dtype), right.to(like.device, dtype)
        lefts, rights = left.split(1), right.split(1)
        pairs = ((i, (i + turn) % LEFTS) for turn in range(LEFTS) for i in range(LEFTS))
        return cls(left[:k], right[:k], tuple(cls(lefts[i], rights[j]) for i, j in pairs))

    def of(self, tensor: Tensor) -> Tensor:
        """``⟨tensor, Rⱼ⟩``, ``[k]``; a sparse gradient is read through its values."""
        if tensor.layout is torch.sparse_coo:
            values = working(tensor._values()).reshape(tensor._values().shape[0], -1)
            return (self.left[:, tensor._indices()[0]] * project(values, self.right)).sum(1)
        tensor = working(tensor)
        if self.right.shape[1] == 1:
            # A single column: ``right`` is all ones.
            return self.left.mv(tensor if tensor.dim() == 1 else tensor.reshape(-1))
        rows = tensor if tensor.dim() == 2 else tensor.reshape(self.left.shape[1], -1)
        if len(self.lefts) == 1:
            return self.lefts[0].dot(rows.mv(self.rights[0])).reshape(1)
        return torch.stack([left.dot(rows.mv(right)) for left, right in zip(self.lefts, self.rights, strict=True)])


def project(rows: Tensor, directions: Tensor) -> Tensor:
    """``⟨rowᵣ, directionⱼ⟩``, ``[k, R]``, of rows ``[R, m]`` and directions ``[k, m]``.

    One matrix-vector product a direction: a product with a matrix of two columns takes many times as long.
    """
    return torch.stack([rows.mv(direction) for direction in directions.unbind()])


class Contribution(ABC):
    """Contributions ``hᵢ`` of n samples to one parameter's gradient.

    Every kind answers the same questions, each in the cheapest way that it knows. All answers are exact up to rounding.
    """

    #: The parameter's shape.
    shape: torch.Size

    @property
    @abstractmethod
    def samples(self) -> int:
        """How many samples there are, n."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that this description keeps alive."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """``‖hᵢ‖²``, float64 ``[n]``."""

    @abstractmethod
    def probe(self, probe: Probe) -> Tensor:
        """``⟨hᵢ, Rⱼ⟩``, float64 or complex128 ``[n, k]``."""

    def figures(
        self, probe: Probe | None = None, *, moments: bool = False, workspace: Workspace | None = None
    ) -> Figures:
        """All that is asked of the contributions at once, for kinds that get several answers from one pass.

        Args:
            probe: random directions, or None.
            moments: whether the elementwise second moment is wanted.
            workspace: algorithms and scratch memory; by default those that the cost model chooses, and fresh memory.
        """
        return Figures(
            self.squared_norms(),
            None if probe is None else self.probe(probe),
            self.second_moment() if moments else None,
        )

    def sampled(self, chosen: Tensor, probe: Probe | None, *, moments: bool, workspace: Workspace) -> Figures:
        """The same where squares are taken of some samples only: the probes are those of all.

        Args:
            chosen: their indices, int64, on the CPU.
            probe: random directions, or None.
            moments: whether the elementwise second moment is wanted, of these samples.
            workspace: algorithms and scratch memory.

        Returns:
            Squares are NaN where a sample was not chosen.
        """
        along = None if probe is None else self.probe(probe)
        found = self.borrow(chosen, workspace).figures(moments=moments, workspace=workspace)
        squares = found.squares.new_full((self.samples,), float("nan"))
        squares[chosen] = found.squares
        return replace(found, squares=squares, probes=along)

    @abstractmethod
    def dense(self) -> Tensor:
        """All ``hᵢ`` in full, ``[n, *shape]``: for small parameters, tests and the guard only."""

    @abstractmethod
    def select(self, index: Tensor) -> Contribution:
        """The contributions of some samples only, by their indices."""

    def borrow(self, index: Tensor, workspace: Workspace) -> Contribution:
        """The same, perhaps in scratch memory: only until the next one is asked for."""
        return self.select(index)

    @abstractmethod
    def regroup(self, sample_of_row: Tensor, samples: int) -> Contribution:
        """Contributions of samples from those of rows: row r belongs to sample ``sample_of_row[r]``; rows are summed."""

    def second_moment(self) -> Tensor:
        """``Σᵢ |hᵢ|²`` elementwise, of the parameter's shape; sample by sample, so that memory stays at one gradient."""
        total: Tensor | None = None
        for i in range(self.samples):
            one = working(self.one(i)).abs().square()
            total = one if total is None else total.add_(one)
        return torch.zeros(self.shape, device="cpu") if total is None else total

    def one(self, i: int) -> Tensor:
        """``hᵢ`` of one sample in full, of the parameter's shape."""
        return self.select(torch.tensor([i], device="cpu")).dense()[0]

    def total(self) -> Tensor:
        """``Σᵢ hᵢ``, of the parameter's shape."""
        total = self.one(0).clone()
        for i in range(1, self.samples):
            total += self.one(i)
        return total
