"""The characters a report is drawn with: one set for Unicode output, one for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from gradscope.reporter.text import visible

#: What words from elsewhere in the package are spelled like where the output cannot take them.
_SPELLINGS = MappingProxyType(
    {
        "ḡ": "g", "ᵢ": "i", "ⱼ": "j", "ₜ": "t", "‖": "||", "Σ": "sum ", "σ": "sigma", "×": "x", "≈": "~", "≥": ">=",
        "≤": "<=", "≠": "!=", "–": "-", "—": "-", "…": "...", "·": "*", "∞": "inf", "²": "^2", "₂": "2", "±": "+/-",
        "−": "-", "→": "->", "↔": "<->", "’": "'", "“": '"', "”": '"', "\u00a0": " ", "\u202f": " ",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Characters that one output can show.

    Attributes:
        encoding: the output's encoding; text that it cannot hold is spelled out.
        rule: draws horizontal lines.
        ellipsis: stands for what was cut out of a long name.
        times: multiplication sign after a ratio.
        none: stands for a figure that there is not.
        at_least: before a lower bound.
        norm: the header of ``‖ḡ‖``.
        span: between the first and the last of a range.
        levels: the steps of a sparkline, lowest first.
        gap: a window without a value in a sparkline.
    """

    encoding: str
    rule: str
    ellipsis: str
    times: str
    none: str
    at_least: str
    norm: str
    span: str
    levels: str
    gap: str

    def text(self, text: str) -> str:
        """``text`` made visible and encodable: control characters escaped, foreign ones spelled out."""
        shown = visible(text)
        try:
            shown.encode(self.encoding)
        except UnicodeEncodeError:
            return "".join(map(self._spelled, shown))
        return shown

    def _spelled(self, character: str) -> str:
        try:
            character.encode(self.encoding)
        except UnicodeEncodeError:
            escaped = character.encode("ascii", "backslashreplace").decode("ascii")
            return _SPELLINGS.get(character, escaped)
        return character


UNICODE = Glyphs("utf-8", "─", "…", "×", "–", "≥ ", "‖ḡ‖", "–", "▁▂▃▄▅▆▇█", "·")
ASCII = Glyphs("ascii", "-", "..", "x", "-", ">= ", "||g||", "-", "_.-=+*#@", " ")


def glyphs_for(encoding: str | None) -> Glyphs:
    """The glyphs that an output of this encoding can show; without an encoding (text in memory), all of them."""
    drawn = UNICODE.rule + UNICODE.ellipsis + UNICODE.at_least + UNICODE.norm + UNICODE.levels + UNICODE.gap
    try:
        drawn.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return _in_ascii(encoding or "ascii")
    except LookupError:  # an encoding that Python does not know
        return ASCII
    return UNICODE


def _in_ascii(encoding: str) -> Glyphs:
    return Glyphs(encoding, *(getattr(ASCII, name) for name in Glyphs.__slots__ if name != "encoding"))
