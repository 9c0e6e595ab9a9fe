"""Whether all ranks take part: a collective that one of them does not join would wait for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist


class RollCall:
    """Each rank's word that it watches the model, in the store of ``torch.distributed``.

    No rank waits here for another. The answers of all ranks are the same all the same: a rank asks after a backward that
    has averaged gradients, when every other rank has begun that backward, and has said before that what it had to say.

    Args:
        settings: what all ranks must have in common: names and shapes of parameters, options.
    """

    def __init__(self, settings: Iterable[object]) -> None:
        digest = hashlib.blake2b("\n".join(map(str, settings)).encode(), digest_size=8).hexdigest()
        self._store: Any = dist.distributed_c10d._get_default_store()
        # Ranks that watch several models of one kind watch them in the same order.
        number = self._store.add(f"gradscope/{digest}/{dist.get_rank()}/scopes", 1)
        self._key = f"gradscope/{digest}/{number}"
        self._store.set(f"{self._key}/rank/{dist.get_rank()}", "watches")

    def complete(self, ranks: Sequence[int]) -> bool:
        """Whether all of these ranks watch the model with the same settings; the first that asks answers for all."""
        key = f"{self._key}/decision/{ranks[0]}"
        if self._store.add(f"{key}/asked", 1) == 1:
            found = self._store.check([f"{self._key}/rank/{rank}" for rank in ranks])
            self._store.set(key, "yes" if found else "no")
        answer: bytes = self._store.get(key)
        return answer == b"yes"

    def leave(self) -> None:
        """Take no part any more."""
        self._store.set(f"{self._key}/left", "yes")

    def left(self) -> bool:
        """Whether some rank has left."""
        found: bool = self._store.check([f"{self._key}/left"])
        return found
