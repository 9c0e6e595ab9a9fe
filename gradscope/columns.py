"""A window's records, kept as columns of numbers until one is looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gradscope.coverage import Coverage
from gradscope.window import ParameterSums


class SumColumns(Mapping[str, ParameterSums]):
    """``Window.parameters``.

    Args:
        places: where each parameter of the model stands in the columns.
        shown: which of them there are.
        grad_sq: ``‖ḡ‖²``.
        own_sq: ``Σ‖hᵢ‖²``.
        preconditioned: ``(tr(PΣ), GᵀPG)`` by name, where known.
        full: records that hold more than numbers, by name.
    """

    __slots__ = ("full", "grad_sq", "names", "own_sq", "places", "preconditioned", "shown")

    def __init__(
        self,
        places: Mapping[str, int],
        shown: Sequence[bool],
        grad_sq: Sequence[float],
        own_sq: Sequence[float],
        preconditioned: Mapping[str, tuple[float, float]],
        full: Mapping[str, ParameterSums],
    ) -> None:
        self.places = places
        self.names = tuple(places)
        self.shown = shown
        self.grad_sq = grad_sq
        self.own_sq = own_sq
        self.preconditioned = preconditioned
        self.full = full

    def __getitem__(self, name: str) -> ParameterSums:
        record = self.full.get(name)
        if record is not None:
            return record
        place = self.places[name]
        if not self.shown[place]:
            raise KeyError(name)
        return ParameterSums(self.grad_sq[place], self.own_sq[place], preconditioned=self.preconditioned.get(name))

    def __iter__(self) -> Iterator[str]:
        return (name for name, place in self.places.items() if self.shown[place])

    def __len__(self) -> int:
        return sum(self.shown)

    def bare(self) -> SumColumns:
        """The numbers alone."""
        if not self.full:
            return self
        return SumColumns(self.places, self.shown, self.grad_sq, self.own_sq, self.preconditioned, {})


class CoverageColumns(Mapping[str, Coverage]):
    """``Window.coverage``.

    Args:
        places: where each parameter of the model stands in the columns.
        ways: how each is covered; errors aside.
        errors: their errors.
    """

    __slots__ = ("errors", "places", "ways")

    def __init__(self, places: Mapping[str, int], ways: Sequence[Coverage], errors: Sequence[float]) -> None:
        self.places = places
        self.ways = ways
        self.errors = errors

    def __getitem__(self, name: str) -> Coverage:
        place = self.places[name]
        one = self.ways[place]
        return Coverage(one.status, one.rule, one.reason, self.errors[place])

    @property
    def mismatched(self) -> bool:
        """Whether the check of any of them failed."""
        return any(way.status == "mismatch" for way in self.ways)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)
