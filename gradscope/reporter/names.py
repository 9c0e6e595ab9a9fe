"""The names of a table's rows, shortened together so that they stay apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.cells import cell_len

from gradscope.reporter.glyphs import Glyphs
from gradscope.reporter.text import cut_middle

#: Names of rows that are no module's.
ROOT, TOTAL = "(model)", "all layers"
#: The total's name where normalisation layers alone were measured: theirs is not the model's.
NORMALIZATION = "norm layers"

#: How much of a cut name its beginning gets, in the order in which it is tried.
_HEAD_SHARES = (0.4, 0.2, 0.6, 0.0, 0.8)


def shown_name(name: str, glyphs: Glyphs) -> str:
    """A layer's name as text; the root's own parameters have a name in brackets."""
    return glyphs.text(name) if name else ROOT


def shortened(names: Sequence[str], width: int, glyphs: Glyphs) -> list[str]:
    """Names in at most ``width`` columns each.

    Where one is too long, the beginning that most such share goes first; then the middle is cut, at a place that
    keeps the names apart if there is one.
    """
    if all(cell_len(name) <= width for name in names):
        return list(names)
    shared = _shared_prefix([name for name in names if cell_len(name) > width], width - cell_len(glyphs.ellipsis))
    bare = [glyphs.ellipsis + name[len(shared) :] if shared and name.startswith(shared) else name for name in names]
    attempts = [[cut_middle(name, width, glyphs.ellipsis, head) for name in bare] for head in _HEAD_SHARES]
    return max(attempts, key=lambda attempt: len(set(attempt)))


def _shared_prefix(names: Sequence[str], room: int) -> str:
    """Leading parts, with the last dot, that most of these names have in common: no more than makes them fit."""
    prefix, alike = "", list(names)
    while any(cell_len(name) - cell_len(prefix) > room for name in alike):
        heads = Counter(head for name in alike if (head := _next_part(name, len(prefix))))
        head, count = heads.most_common(1)[0] if heads else ("", 0)
        if count < 2 or 2 * count <= len(names):  # with nothing to tell it from, a name keeps its beginning
            break
        prefix += head
        alike = [name for name in alike if name.startswith(prefix)]
    return prefix


def _next_part(name: str, start: int) -> str:
    dot = name.find(".", start)
    return name[start : dot + 1] if dot >= 0 else ""
