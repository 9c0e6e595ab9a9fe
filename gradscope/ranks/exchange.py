"""The collectives, in the same number and of the same shapes on every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradscope.ranks.differences import uneven
from gradscope.ranks.merged import Merged, own_squares
from gradscope.ranks.numbers import Head, Row, as_vector, from_vector
from gradscope.ranks.peers import Peers
from gradscope.ranks.share import Share
from gradscope.ranks.totals import Totals, compared, found_factor
from gradscope.ranks.words import as_letter, from_letter
from gradscope.window import ParameterInfo


class Exchange:
    """What is sent and received for a window. Every branch depends on what all ranks have received alike.

    Args:
        peers: the ranks.
        parameters: those of the model, on all ranks the same.
        one_copy: each part of a gradient is on one rank only.
        gather: whether samples' norms of all ranks are wanted on each.

    Attributes:
        wait: backwards until the next exchange.
        uneven: why ranks were not in the same window when they met last; empty where they were.
    """

    def __init__(self, peers: Peers, parameters: Sequence[ParameterInfo], *, one_copy: bool, gather: bool) -> None:
        self.peers, self.gather = peers, gather
        self.shapes = {info.name: info.shape for info in parameters}
        self.names = list(self.shapes)
        self.wait = 1
        self.uneven = ""
        self._one_copy = one_copy
        self._usual = self._factor = 1 / peers.world
        self._words: list[dict[str, str]] = [{} for _ in range(peers.world)]
        self._said: Mapping[str, str] = {}

    def nothing(self, head: Head) -> Share:
        """The share of a rank that is between windows."""
        return Share(head, [Row()] * len(self.names), None, {}, {}, self._said)

    def merge(self, build: Callable[[], Share], head: Head, *, by_parts: bool) -> Merged | None:
        """All ranks' windows; None where they are not all in one that is measured.

        Args:
            build: makes this rank's share.
            head: what is sent of this rank if that fails.
            by_parts: no rank knows its samples.

        Raises:
            RuntimeError: another rank is gone.
        """
        try:
            share = build()
        except Exception as error:  # the others wait for an answer, and learn of it this way
            text = f"gradscope failed: {type(error).__name__}: {str(error)[:200]}"
            share = replace(self.nothing(head._replace(failed=1.0)), words={"\n0": text})
        share = replace(share, head=share.head._replace(speaks=float(dict(share.words) != dict(self._said))))
        vector = as_vector(share.head, share.rows, self.peers.rank, self.peers.world)
        heads, rows = from_vector(self.peers.total(vector), self.peers.world)
        if any(found.speaks for found in heads):
            self._words = [from_letter(letter) for letter in self.peers.gather(as_letter(share.words))]
            self._said = share.words
        totals = Totals(heads, dict(zip(self.names, rows, strict=True)), self._one_copy, self._factor)
        ahead = {round(found.ahead) for found in heads}
        self.wait = max(ahead) if len(ahead) == 1 and max(ahead) else 1
        self.uneven = uneven(heads) if len(ahead) > 1 else ""
        if ahead != {0}:
            return None
        if totals.comparable:
            self._factor = found_factor(totals, self._usual)
            totals = compared(replace(totals, factor=self._factor))
        squares, weights = self._gathered(share, totals) if self.gather else (None, None)
        return Merged(
            totals=totals,
            share=share,
            rank=self.peers.rank,
            usual=self._usual,
            words=self._words,
            by_parts=by_parts,
            squares=squares,
            weights=weights,
            moments=self._moments(share, totals),
        )

    def _moments(self, share: Share, totals: Totals) -> dict[str, Tensor]:
        """``Σ|hᵢ|²`` elementwise over all ranks, parameter by parameter."""
        found: dict[str, Tensor] = {}
        for name, row in totals.rows.items():
            # Where each rank has a part of the gradient only, there is nothing to compare it with.
            if self._one_copy or not row.moments or row.moments != row.arrived:
                continue
            own, expected = share.moments.get(name), self.shapes[name]
            if own is None or own.shape != expected:
                own = (
                    torch.zeros(expected, device="cpu")
                    if own is None
                    else torch.full(expected, float("nan"), device="cpu")
                )
            found[name] = self.peers.total(own.double().clone()).to(own)
        return found

    def _gathered(self, share: Share, totals: Totals) -> tuple[dict[str, Tensor], Tensor]:
        """``‖hᵢ‖²`` and ``uᵢ`` of all ranks' samples, by a gather of tables as long as the longest."""
        sizes = [round(head.samples) for head in totals.heads]
        parts = self.peers.gather(self._table(share, max(sizes)))
        whole = torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)
        return dict(zip(self.names, whole[:-1], strict=True)), whole[-1]

    def _table(self, share: Share, length: int) -> Tensor:
        """``‖hᵢ‖²`` of this rank's samples, a row a parameter, and a last row with their weights; NaN where there is nothing."""
        table = torch.full((len(self.names) + 1, length), float("nan"), dtype=torch.float64, device="cpu")
        count = round(share.head.samples)
        for k, name in enumerate(self.names):
            own = own_squares(share, name)
            if own is not None and own.numel() == count:
                table[k, :count] = own
        if share.window is not None and share.window.weights is not None:
            table[-1, :count] = share.window.weights * share.head.weight
        return table
