"""Text from models and files, made fit to be shown: visible, cut to a width, wrapped."""

from __future__ import annotations

import re
import unicodedata

from rich.cells import cell_len

from gradscope.reporter.figures import NO_BREAK

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str) -> str:
    r"""``text`` with control, formatting and unprintable characters written as escapes: ESC is shown as ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _INVISIBLE
        else character
        for character in text
    )


def cut_middle(text: str, width: int, ellipsis: str = "…", head_share: float = 0.4) -> str:
    """``text`` in at most ``width`` columns; of a longer one both ends are kept, more of the last: the end tells."""
    if cell_len(text) <= width:
        return text
    room = width - cell_len(ellipsis)
    if room < 2:
        return _tail(text, width)
    head = _head(text, int(room * head_share))
    return head + ellipsis + _tail(text, room - cell_len(head))


def pad(text: str, width: int, justify: str) -> str:
    """``text`` filled with spaces to ``width`` columns, on the left where ``justify`` is ``"right"``."""
    spaces = " " * max(0, width - cell_len(text))
    return spaces + text if justify == "right" else text + spaces


def wrap(text: str, width: int) -> list[str]:
    """``text`` in lines of at most ``width`` columns, broken at spaces where it has any."""
    lines = [""]
    text = re.sub(r"(\[\S+,) (\S+\])", rf"\1{NO_BREAK}\2", text.strip())  # an interval stays whole
    for word in re.split(r"[ \t\n]+", text):
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += " " + word
            continue
        pieces = _chopped(word, width) or [""]
        lines[-1:] = [lines[-1], *pieces] if lines[-1] else pieces
    return [line.replace(NO_BREAK, " ") for line in lines]


def _chopped(word: str, width: int) -> list[str]:
    pieces = []
    while cell_len(word) > width:
        head = _head(word, width) or word[0]
        pieces.append(head)
        word = word[len(head) :]
    return [*pieces, word] if word else pieces


def _head(text: str, width: int) -> str:
    used = 0
    for position, character in enumerate(text):
        used += cell_len(character)
        if used > width:
            return text[:position]
    return text


def _tail(text: str, width: int) -> str:
    return _head(text[::-1], width)[::-1]
