"""The other ranks, as a session sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.nn import SyncBatchNorm

from gradscope.capture.backward import Backward
from gradscope.capture.recorder import SEED, Recorder
from gradscope.moments.leaf import Leaf
from gradscope.ranks.numbers import Head, directions
from gradscope.ranks.ranks import Ranks
from gradscope.ranks.roll_call import RollCall
from gradscope.ranks.rounds import LEVELS, Rounds
from gradscope.window import Window
from gradscope.window_sums import AdamState

if TYPE_CHECKING:
    from gradscope.session import Session


class Company:
    """Keeps a session's hooks, random directions and windows in step with those of other ranks.

    Args:
        session: the one that they are merged for; its options and parameters must be the same on all ranks.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        infos, options = session.parameters, session.options
        roll = RollCall((options, sorted(session.ignored), *((info.name, info.shape) for info in infos)))
        self._rounds = Rounds(
            session.model, roll, self._look, lambda: session.recorder.leaves, self._meet, batch_dim=options.batch_dim
        )
        self._ranks = Ranks(self._rounds, infos, gather=options.gather_norms)
        #: Which random directions the parameters' probes have; -1 where each rank has its own.
        self._drawn = self._directions = -1
        self.draw()

    @property
    def silent(self) -> bool:
        """Whether another rank writes and prints for all."""
        return dist.get_rank() != 0

    def take_seconds(self) -> float:
        """Time spent here since this was last asked."""
        found, self._rounds.seconds = self._rounds.seconds, 0.0
        return found

    def leave(self) -> None:
        """Take the hooks off, and tell the others."""
        self._rounds.leave()

    # -- directions ---------------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Random directions for a guard window, the same on all ranks so that probes can be added up."""
        recorder = self._session.recorder
        if not isinstance(recorder, Recorder):
            return
        recorder.levels = 0 if self._rounds.apart else LEVELS
        recorder.share()
        modules = self._session.model.modules()
        # A second backward would gather or add up once more over ranks, and not at the same time on all.
        recorder.inner = recorder.gathered is None and not any(isinstance(module, SyncBatchNorm) for module in modules)
        self._drawn = self._session.history.index
        self._directions = directions(self._drawn)
        generator = torch.Generator("cpu").manual_seed(SEED + self._drawn)
        for leaf in recorder.leaves:
            leaf.probe = None
            if leaf.wanted:
                leaf.directions(generator)

    def narrow(self, which: int) -> None:
        """An ordinary window looks along one of them."""
        if self._drawn >= 0:
            self._directions = directions(self._drawn, which)

    # -- a forward, a backward ----------------------------------------------------------------------------------------

    def _look(self) -> Sequence[Leaf]:
        """The parameters as a forward begins; ``fully_shard`` may have replaced them since."""
        session = self._session
        if not any(leaf.sharded for leaf in session.recorder.leaves[:1]) and not session.opened.arrived:
            first = next(session.model.parameters(), None)
            if first is not None and hasattr(first, "to_local"):
                session.look_again()
        return session.recorder.leaves

    def took(self, backward: Backward, orphan: bool) -> bool:
        """A backward is over.

        Args:
            backward: what it reached.
            orphan: whether it belongs to no sample.

        Returns:
            Whether it belongs to no sample although there were some.
        """
        leaves = self._session.recorder.leaves
        self._rounds.reached |= {id(leaves[index].parameter) for index in backward.arrivals}
        self._session.opened.shared = self._rounds.averages
        return orphan and not self._rounds.empty

    def _meet(self) -> None:
        """A backward has averaged gradients over ranks: tell the others what this one has seen."""
        session = self._session
        session.note_failures()
        opened, index = session.opened, session.history.index
        ahead = -index % session.options.every
        head = Head(number=float(index), ahead=float(ahead), directions=float(self._directions))
        self._ranks.exchange(
            opened, head, lambda: opened.close(index + 1, scale=1.0, adam={}), measuring=session.measuring
        )
        for leaf in opened.leaves:
            if leaf.version is not None and leaf.grad is not None:
                leaf.version = leaf.grad._version

    # -- a window -----------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether ranks have told each other of the open window."""
        return self._ranks.pending

    def close(self, index: int, *, scale: float, adam: Mapping[int, AdamState]) -> Window:
        """The open window with all ranks' samples, or with a word why not."""
        if self._rounds.apart and isinstance(self._session.recorder, Recorder):
            self._session.recorder.levels = 0
        return self._ranks.close(self._session.opened, index, scale=scale, adam=adam)
