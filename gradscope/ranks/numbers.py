"""What one rank sends: as many numbers as any other, whatever has happened on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.contributions.contribution import LEFTS

#: How many single directions ordinary windows look along in turn.
PARTS = LEFTS * LEFTS


def directions(drawn: int, which: int | None = None) -> int:
    """A number for the random directions of a window's probes: equal numbers mean equal directions on all ranks.

    Args:
        drawn: index of the window in which both were drawn.
        which: of an ordinary window, which looks along one of them only; None in a guard window.
    """
    return 2 * PARTS * drawn + (PARTS if which is None else which % PARTS)


def looks(number: float) -> slice:
    """Which of two probes belong to such a number."""
    kind = round(number) % (2 * PARTS)
    return slice(0, 2) if kind == PARTS else slice(kind % 2, kind % 2 + 1)


class Head(NamedTuple):
    """A rank's own numbers; each rank has a place of its own for them.

    Attributes:
        samples: in its window so far.
        micro_steps: likewise.
        weight: ``Σuᵢ``.
        weight_sq: ``Σuᵢ²``.
        part_weight_sq: ``Σⱼ Uⱼ²`` of its micro-steps' weights ``Uⱼ``.
        number: windows that it has closed.
        ahead: windows until the next that ``every`` measures.
        directions: which random directions its probes have; -1 where it has none.
        speaks: its words have changed.
        failed: its sums could not be computed.
    """

    samples: float = 0.0
    micro_steps: float = 0.0
    weight: float = 0.0
    weight_sq: float = 0.0
    part_weight_sq: float = 0.0
    number: float = 0.0
    ahead: float = 0.0
    directions: float = -1.0
    speaks: float = 0.0
    failed: float = 0.0


class Row(NamedTuple):
    """One parameter's numbers, which are summed over ranks; without any of its statuses ignored, frozen, or gone.

    Attributes:
        arrived: something reached it here.
        exact: it was measured exactly, and so on for the other statuses.
        spoiled: samples interact, so that no estimate would mean anything.
        unreduced: something reached it, but its gradient was not reduced.
        own_sq: ``Σ‖hᵢ‖²`` of this rank's contributions to its own gradient.
        part_sq: ``Σ‖Δⱼ‖²`` of its micro-steps.
        grad_sq: ``‖ḡ‖²`` of the reduced gradient, or this rank's part of it.
        grad_sq_sq: its square: where the sum of squares is not that of equal numbers, ranks have different gradients.
        here: two probes of what reached the parameter here, real and imaginary parts.
        reduced: likewise of the reduced gradient.
        errors: square of the check's error.
        checked: whether there was a check.
        moments: whether ``Σ|hᵢ|²`` is known elementwise.
    """

    arrived: float = 0.0
    exact: float = 0.0
    second_pass: float = 0.0
    estimated: float = 0.0
    withheld: float = 0.0
    mismatch: float = 0.0
    spoiled: float = 0.0
    unreduced: float = 0.0
    own_sq: float = 0.0
    part_sq: float = 0.0
    grad_sq: float = 0.0
    grad_sq_sq: float = 0.0
    here_0: float = 0.0
    here_1: float = 0.0
    here_2: float = 0.0
    here_3: float = 0.0
    reduced_0: float = 0.0
    reduced_1: float = 0.0
    reduced_2: float = 0.0
    reduced_3: float = 0.0
    errors: float = 0.0
    checked: float = 0.0
    moments: float = 0.0

    @property
    def here(self) -> tuple[float, ...]:
        """The probes of what reached the parameter."""
        return self.here_0, self.here_1, self.here_2, self.here_3

    @property
    def reduced(self) -> tuple[float, ...]:
        """The probes of the reduced gradient."""
        return self.reduced_0, self.reduced_1, self.reduced_2, self.reduced_3


def as_vector(head: Head, rows: Sequence[Row], rank: int, world: int) -> Tensor:
    """Everything in one float64 vector, whose sum over ranks holds every rank's head and the rows' sums."""
    heads = torch.zeros(world, len(Head._fields), dtype=torch.float64, device="cpu")
    heads[rank] = torch.tensor(head, dtype=torch.float64, device="cpu")
    return torch.cat([heads.reshape(-1), torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(-1)])


def from_vector(vector: Tensor, world: int) -> tuple[list[Head], list[Row]]:
    """The heads by rank, and the rows' sums."""
    at = world * len(Head._fields)
    heads = [Head(*values) for values in vector[:at].reshape(world, -1).tolist()]
    return heads, [Row(*values) for values in vector[at:].reshape(-1, len(Row._fields)).tolist()]
