"""The window that is being filled, with the other ranks' samples in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch.distributed as dist

from gradscope.accumulator import OpenWindow
from gradscope.ranks.exchange import Exchange
from gradscope.ranks.merged import Merged
from gradscope.ranks.numbers import Head
from gradscope.ranks.rounds import Rounds
from gradscope.ranks.share import Share, share_of
from gradscope.window import ParameterInfo, Window
from gradscope.window_sums import AdamState

UNWRAPPED = (
    "torch.distributed is in use, and nothing that averages gradients was seen around the model "
    "(DistributedDataParallel, fully_shard): figures are of this rank's samples alone"
)
NOT_AVERAGED = (
    "no backward of this window averaged the gradients of ranks (no_sync around all of them, or the model inside the wrapper "
    "called directly?): figures are of this rank's samples, and so was its update"
)
AFTERWARDS = (
    "a backward came after the last one that averaged the gradients of ranks (no_sync around the last micro-step?), so that "
    "ranks step with different gradients"
)
GONE = "ranks are not merged, and the gradient of this rank's samples alone is nowhere to be seen: {}"


class Ranks:
    """Merges this rank's windows with those of the others.

    Args:
        rounds: when ranks meet.
        parameters: what ranks tell each other of.
        gather: whether samples' norms of all ranks are wanted on each.
    """

    def __init__(self, rounds: Rounds, parameters: Sequence[ParameterInfo], *, gather: bool) -> None:
        self._rounds, self._parameters, self._gather = rounds, list(parameters), gather
        self._exchange: Exchange | None = None
        self._merged: tuple[Merged, int] | None = None

    def _new_exchange(self) -> Exchange | None:
        averaging = self._rounds.averaging
        if averaging is None:
            return None
        return Exchange(averaging.peers, self._parameters, one_copy=averaging.one_copy, gather=self._gather)

    def exchange(self, opened: OpenWindow, head: Head, local: Callable[[], Window], *, measuring: bool) -> None:
        """Tell the other ranks what this one has, and learn what they have.

        Args:
            opened: the window so far.
            head: index, ahead and directions.
            local: closes the window as if there were no others.
            measuring: whether it is one that ``every`` measures.
        """
        exchange = self._exchange = self._exchange or self._new_exchange()
        if exchange is None:
            return

        def build() -> Share:
            return share_of(opened, local(), exchange.names, head) if measuring else exchange.nothing(head)

        try:
            merged = exchange.merge(build, head, by_parts=opened.by_parts)
        except RuntimeError as error:  # a rank is gone: the user's own collective fails next, with the user's own error
            self._rounds.fail(f"ranks could not be merged any more: {str(error).strip().splitlines()[0][:200]}")
            return
        self._rounds.due = self._rounds.count + exchange.wait
        self._merged = None if merged is None else (merged, len(opened.steps))

    @property
    def pending(self) -> bool:
        """Whether ranks have told each other of the open window."""
        return self._merged is not None

    def close(self, opened: OpenWindow, index: int, *, scale: float, adam: Mapping[int, AdamState]) -> Window:
        """The window of all ranks where they were merged, else of this one; what stands in the way is said."""
        merged, self._merged, rounds = self._merged, None, self._rounds
        averaged, rounds.averaged = rounds.averaged, False
        names = {leaf.index: leaf.info.name for leaf in opened.leaves}
        if merged is not None and merged[1] == len(opened.steps) and not rounds.apart:
            return merged[0].window(
                index,
                scale=scale,
                problems={names[i]: text for i, text in opened.problems.items()},
                adam={names[i]: state for i, state in adam.items()},
                late=[notice for notice in opened.notices if notice not in merged[0].share.words.values()],
            )
        text = self._why_alone(averaged, merged is not None)
        opened.notices.append(text)
        averaging = rounds.averaging
        if averaging is not None and (averaged or averaging.one_copy or (rounds.apart and averaging.overwrites)):
            gone = AFTERWARDS if text == AFTERWARDS else GONE.format(text)
            for leaf in opened.leaves:
                opened.problems.setdefault(leaf.index, gone)
        return opened.close(index, scale=scale, adam=adam)

    def _why_alone(self, averaged: bool, merged: bool) -> str:
        if self._rounds.apart:
            return self._rounds.apart
        if self._rounds.averaging is None:
            return UNWRAPPED
        if self._exchange is not None and self._exchange.uneven:
            return self._exchange.uneven
        if merged or averaged:
            return AFTERWARDS
        return NOT_AVERAGED


def distributed() -> bool:
    """Whether the user has initialised ``torch.distributed`` with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
