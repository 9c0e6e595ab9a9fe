"""Layouts that were measured before, kept where that is safe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gradscope.capture.layout import Layout, NoSamples, Rows

#: One place in the graph: depth below the parameter, kind of node, operand, and both shapes.
Place = tuple[int, str, int, torch.Size, torch.Size]
Key = tuple[object, ...]

#: Row orders that are remembered until they are seen again.
MOST = 256

#: Calls whose layouts are remembered, over graphs of all shapes.
LIMIT = 4096

#: How often in a row nothing may flow through a call before it is no longer waited for.
STILL = 4

#: How much squared norms may grow before a layout that did not matter counts as not known.
ROOM = 100.0


class LayoutMemory:
    """Which layout calls of one kind have.

    A row order is kept only once it came out the same twice, and, unless samples are folded, on inputs that gave every row a
    gradient: routing depends on the input.
    """

    def __init__(self) -> None:
        self._known: dict[Key, Layout] = {}
        self._rows: dict[Key, Rows] = {}
        self._still: dict[Key, int] = {}
        #: Per parameter or layer, and graph: places that looked as if samples were met there, and where tags showed none.
        self.rejected: dict[object, set[Place]] = {}
        #: Calls whose rows are to be looked at one by one, since sums over rows fitted no sample.
        self.every_row: set[Key] = set()
        #: Below which squared norm a place's layout does not matter, where tags could not tell it.
        self.negligible: dict[Key, float] = {}

    def known(self, key: Key) -> Layout | None:
        """The layout of calls of this kind, or None."""
        return self._known.get(key)

    @np.errstate(all="ignore")
    def learn(self, key: Key, layout: Layout, rows: Tensor, every_sample_seen: bool) -> bool:
        """Note a layout measured on rows' numbers ``[R, k]``; whether it is known from now on.

        A gradient that is not finite teaches nothing, nor does one that is zero in nearly all rows (a head that begins at zero),
        unless all samples have some (a class token): nothing fits every layout. Where nothing ever flows (an auxiliary loss
        times zero), no layout matters until something does.
        """
        if isinstance(layout, NoSamples) and not layout.settled:
            self._known.pop(key, None)
            if len(self.every_row) < MOST:
                self.every_row.add(key)
            return False
        size = np.abs(rows.detach().cpu().numpy()).sum(1)
        if not np.isfinite(size).all():
            return False
        seen = int((size > 0).sum())
        if seen == 0 and size.size and not isinstance(layout, NoSamples):
            if len(self._still) >= LIMIT:
                self._still.pop(next(iter(self._still)))
            self._still[key] = self._still.get(key, 0) + 1
            if self._still[key] < STILL:
                return False
            self.remember_negligible(key, layout, 0.0)
            return key in self._known
        self._still.pop(key, None)
        if seen >= 2 and (every_sample_seen or 10 * seen >= size.size):
            self.remember(key, layout, seen == size.size)
            return key in self._known
        return False

    def remember(self, key: Key, layout: Layout, every_row_seen: bool) -> None:
        """Note a measured layout."""
        self.negligible.pop(key, None)
        if len(self._known) >= LIMIT:
            # Graphs that never come again.
            self._known.pop(next(iter(self._known)))
        if not isinstance(layout, Rows):
            self._known[key] = layout
            return
        before, every_row_seen = self._rows.get(key), every_row_seen or layout.folded
        if before is not None and every_row_seen and before.sample_of_row.equal(layout.sample_of_row):
            self._known[key] = layout
        else:
            self._known.pop(key, None)
        if every_row_seen:
            if len(self._rows) >= MOST:
                # Shapes that never come again.
                self._rows.pop(next(iter(self._rows)))
            self._rows[key] = layout

    def remember_negligible(self, key: Key, layout: Layout, limit: float) -> None:
        """Note a layout that does not matter while what it describes has a squared norm below the limit."""
        self.remember(key, layout, every_row_seen=True)
        self.negligible[key] = limit

    def outgrown(self, key: Key, squared_norm: Callable[[], float]) -> bool:
        """Whether a layout that did not matter does now; then it is forgotten, and measured at the next occasion."""
        limit = self.negligible.get(key)
        if limit is None or squared_norm() <= ROOM * limit:
            return False
        self.negligible.pop(key)
        self._known.pop(key, None)
        return True
