"""Whether all ranks take part: a collective that one of them does not join would wait for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist

GONE = "gone"


class RollCall:
    """Each rank's word that it watches the model, in the store of ``torch.distributed``.

    No rank waits here for another, and yet all get the same answer: a rank asks after a backward that has averaged gradients,
    when every other rank has begun that backward, and has said before it what it had to say. Who came later is known by the
    number of collectives that the process group had seen by then.

    Args:
        settings: what all ranks must have in common: names and shapes of parameters, options.
    """

    def __init__(self, settings: Iterable[object]) -> None:
        self._store: Any = dist.distributed_c10d._get_default_store()
        self._rank = dist.get_rank()
        kind = f"gradscope/{_digest(settings)}"
        # Ranks that watch several models of one kind watch them in the same order. A number that some of them found themselves
        # alone with is not used again by the others.
        number = self._store.add(f"{kind}/scopes/{self._rank}", 1)
        while self._store.check([f"{kind}/{number}/failed/{self._rank}"]):
            number = self._store.add(f"{kind}/scopes/{self._rank}", 1)
        self._key = f"{kind}/{number}"
        self._left = ""
        self._since: int | None = None

    def answer(self, collectives: int) -> None:
        """Say that this rank watches, as a forward begins.

        Args:
            collectives: how many its process group has seen.
        """
        if self._since is None:
            self._since = collectives
            self._store.set(f"{self._key}/rank/{self._rank}", str(collectives))

    def complete(self, ranks: Sequence[int], collectives: int) -> bool:
        """Whether all of these ranks watch the model with the same settings; the first that asks answers for all.

        Args:
            ranks: their global numbers.
            collectives: how many their process group has seen. Where it does not count them, latecomers are not noticed.
        """
        before = collectives if collectives != self._since else collectives + 1
        key = f"{self._key}/group/{_digest(ranks)}"
        self._left = f"{key}/left"
        if self._store.add(f"{key}/asked", 1) == 1:
            found = all(self._watches(rank, before) for rank in ranks)
            for rank in () if found else ranks:
                self._store.set(f"{self._key}/failed/{rank}", "yes")
            self._store.set(key, "yes" if found else "no")
        answer: bytes = self._store.get(key)
        return answer == b"yes"

    def _watches(self, rank: int, before: int) -> bool:
        key = f"{self._key}/rank/{rank}"
        if not self._store.check([key]):
            return False
        found: str = self._store.get(key).decode()
        return found != GONE and int(found) < before

    def leave(self) -> None:
        """Take no part any more."""
        self._store.set(f"{self._key}/rank/{self._rank}", GONE)
        if self._left:
            self._store.set(self._left, "yes")

    def left(self) -> bool:
        """Whether some rank has left."""
        found: bool = self._store.check([self._left])
        return found


def _digest(parts: Iterable[object]) -> str:
    return hashlib.blake2b("\n".join(map(str, parts)).encode(), digest_size=8).hexdigest()
