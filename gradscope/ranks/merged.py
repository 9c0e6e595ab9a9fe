"""The window of all ranks' samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradscope.coverage import Coverage
from gradscope.ranks.coverage import BY_RANKS, NOT_AGREED, merged_coverage, rounded
from gradscope.ranks.differences import differences, on, said
from gradscope.ranks.share import Share
from gradscope.ranks.totals import Totals
from gradscope.statistics.elementwise import elementwise_moments
from gradscope.statistics.preconditioned import adam_preconditioner, preconditioned_sums
from gradscope.statistics.two_sizes import contribution_sq_sum_of_parts
from gradscope.window import ParameterSums, Window
from gradscope.window_sums import AdamState


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """What ranks have told each other of the open window.

    Attributes:
        totals: sums over ranks.
        share: what this rank brought.
        rank: this one's number.
        usual: the factor that averaging has.
        words: what each rank has to say.
        by_parts: no rank knows its samples.
        squares: ``‖hᵢ‖²`` of all ranks' own contributions by parameter name, where they were gathered; NaN where unknown.
        weights: ``uᵢ`` of all ranks' samples, likewise.
        moments: ``Σ|hᵢ|²`` over all ranks' own contributions.
    """

    totals: Totals
    share: Share
    rank: int
    usual: float
    words: Sequence[Mapping[str, str]]
    by_parts: bool
    squares: Mapping[str, Tensor] | None
    weights: Tensor | None
    moments: Mapping[str, Tensor]

    def window(
        self,
        index: int,
        *,
        scale: float,
        problems: Mapping[str, str],
        adam: Mapping[str, AdamState],
        late: Sequence[str],
    ) -> Window:
        """The window, with the loss's scale divided out.

        Args:
            index: its number.
            scale: what the loss was multiplied with.
            problems: parameters that something has happened to since, and what.
            adam: what the optimizer knows, by parameter name.
            late: what else is to be said.
        """
        totals, own = self.totals, self.share.window
        failed = [rank for rank, head in enumerate(totals.heads) if head.failed]
        if own is None or failed:
            return self._failed(index, failed or [self.rank], late)
        coverage = dict(own.coverage)
        for name, found in own.coverage.items():
            if name in totals.rows:
                coverage[name] = merged_coverage(found, name, totals, self.words, by_parts=self.by_parts)
            elif found.measured:
                coverage[name] = Coverage("not measured", found.rule, NOT_AGREED)
        coverage.update((name, Coverage("not measured", reason=text)) for name, text in problems.items())
        sums = {
            name: self._sums(name, found, scale, adam.get(name))
            for name, found in coverage.items()
            if found.measured and name in totals.rows and totals.rows[name].arrived
        }
        return replace(
            own,
            index=index,
            samples=totals.samples,
            micro_steps=round(sum(head.micro_steps for head in totals.heads)),
            weight_sq_sum=totals.weight_sq_sum,
            parameters=sums,
            coverage=coverage,
            weights=self._share_of_weight(),
            ids=self._ids(),
            notices=tuple(
                dict.fromkeys(
                    [*differences(totals, self.usual), *rounded(totals, self.share.dtype), *said(self.words), *late]
                )
            ),
        )

    def _failed(self, index: int, ranks: Sequence[int], late: Sequence[str]) -> Window:
        text = f"gradscope failed on {on(ranks)}, so that a share of the window is missing"
        names = self.totals.rows
        return Window(
            index=index,
            samples=self.totals.samples,
            micro_steps=0,
            weight_sq_sum=self.totals.weight_sq_sum,
            parameters={},
            coverage={name: Coverage("not measured", reason=text) for name in names},
            notices=(text, *said(self.words), *late),
        )

    def _sums(self, name: str, found: Coverage, scale: float, adam: AdamState | None) -> ParameterSums:
        totals, row, square = self.totals, self.totals.rows[name], scale * scale
        grad_sq, factor = totals.grad_sq(row) / square, totals.factor * totals.factor / square
        if found.rule == BY_RANKS:
            numbers = (grad_sq, factor * row.part_sq, totals.part_weight_sq_sum, totals.weight_sq_sum)
            own_sq = contribution_sq_sum_of_parts(*(np.array(x) for x in numbers))
            return ParameterSums(grad_sq, float(own_sq))
        by_sample = found.status in ("exact", "second pass")
        squares = self._squares(name) * factor if by_sample else None
        variance = signal = preconditioned = None
        if name in self.moments and name in self.share.grads:
            grad, moment = self.share.grads[name] / scale, self.moments[name] * factor
            variance, signal = elementwise_moments(grad, moment, totals.weight_sq_sum, totals.samples)
            if adam is not None:
                precondition = adam_preconditioner(adam.second_moment, adam.step, adam.beta2, adam.eps)
                preconditioned = preconditioned_sums(variance, signal, precondition)
        return ParameterSums(grad_sq, factor * row.own_sq, squares, variance, signal, preconditioned)

    def _squares(self, name: str) -> Tensor:
        """``‖hᵢ‖²`` of this rank's own contributions among all samples, or of all."""
        if self.squares is not None:
            return self.squares[name]
        found = torch.full((self.totals.samples,), float("nan"), dtype=torch.float64, device="cpu")
        here = own_squares(self.share, name)
        if here is not None:
            found[self._places()] = here
        return found

    def _places(self) -> slice:
        """Where this rank's samples stand among all."""
        before = round(sum(head.samples for head in self.totals.heads[: self.rank]))
        return slice(before, before + round(self.totals.heads[self.rank].samples))

    def _share_of_weight(self) -> Tensor:
        """``wᵢ``; NaN for samples of other ranks whose weights are not known here."""
        totals = self.totals
        if self.weights is not None:
            return self.weights / totals.weight
        equal = all(head.weight == head.samples == head.weight_sq for head in totals.heads)
        found = torch.full(
            (totals.samples,), 1 / totals.weight if equal else float("nan"), dtype=torch.float64, device="cpu"
        )
        own = self.share.window.weights if self.share.window is not None else None
        if not equal and own is not None:
            found[self._places()] = own * (totals.heads[self.rank].weight / totals.weight)
        return found

    def _ids(self) -> tuple[str, ...] | None:
        """The user's names of this rank's samples; of the others, whose they are."""
        own = self.share.window.ids if self.share.window is not None else None
        if own is None:
            return None
        names: list[str] = []
        for rank, head in enumerate(self.totals.heads):
            count = round(head.samples)
            names += list(own) if rank == self.rank else [f"rank {rank}, #{i}" for i in range(count)]
        return tuple(names)


def own_squares(share: Share, name: str) -> Tensor | None:
    """``‖hᵢ‖²`` of this rank's samples as they are in its own gradient; zeros where nothing reached the parameter here."""
    window = share.window
    if window is None:
        return None
    found = window.parameters.get(name)
    if found is None and name in window.coverage and window.coverage[name].status == "no gradient":
        return torch.zeros(window.samples, dtype=torch.float64, device="cpu")
    return found.sample_sq_norms if found is not None else None
