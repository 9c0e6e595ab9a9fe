"""The names of a table's rows, shortened together so that they stay apart."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from gradscope.reporter.glyphs import Glyphs
from gradscope.reporter.text import cut_middle

#: Names of rows that are no module's.
ROOT, TOTAL = "(model)", "all layers"

#: How much of a cut name its beginning gets, in the order in which it is tried.
_HEAD_SHARES = (0.4, 0.2, 0.6, 0.0, 0.8)


def shown_name(name: str, glyphs: Glyphs) -> str:
    """A layer's name as text; the root's own parameters have a name in brackets."""
    return glyphs.text(name) if name else ROOT


def shortened(names: Sequence[str], width: int, glyphs: Glyphs) -> list[str]:
    """Names in at most ``width`` columns each.

    Where one is too long, the beginning that all such share goes first; then the middle is cut, at a place that
    keeps the names apart if there is one.
    """
    if all(cell_len(name) <= width for name in names):
        return list(names)
    shared = _shared_prefix([name for name in names if cell_len(name) > width])
    bare = [glyphs.ellipsis + name[len(shared) :] if shared and name.startswith(shared) else name for name in names]
    attempts = [[cut_middle(name, width, glyphs.ellipsis, head) for name in bare] for head in _HEAD_SHARES]
    return max(attempts, key=lambda attempt: len(set(attempt)))


def _shared_prefix(names: Sequence[str]) -> str:
    """The leading parts, with the last dot, that all names have in common; no name is used up by them."""
    if len(names) < 2:  # with nothing to tell it from, a name keeps its beginning
        return ""
    split = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join([*shared, ""])
