"""A few shapes of SVG, readable on light and dark pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#6b7280}.strong{font-weight:600;fill:#3b82f6}"
    ".head{font-weight:600}.grid{stroke:#9ca3af;stroke-opacity:.35}"
)


@dataclass(slots=True)
class Svg:
    """A picture that is being drawn."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, *, kind: str = "", anchor: str = "start") -> None:
        """Text with its baseline at ``y``."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, *, color: str = "", width: float = 1) -> None:
        """A line; a grid line where no colour is given."""
        look = f'stroke="{color}" stroke-width="{width}"' if color else 'class="grid"'
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {look}/>')

    def dot(self, x: float, y: float, color: str, *, hollow: bool = False) -> None:
        """A dot, hollow where it stands for a part."""
        fill = "none" if hollow else color
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="{color}" stroke-width="1.5"/>'
        )

    def path(self, points: list[tuple[float, float]], color: str) -> None:
        """A line through points."""
        steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{steps}" fill="none" stroke="{color}" stroke-width="1.5"/>')

    def render(self) -> str:
        """The file's text."""
        box = f'viewBox="0 0 {self.width:.0f} {self.height:.0f}" width="{self.width:.0f}" height="{self.height:.0f}"'
        body = "\n".join(self.parts)
        return f'<svg xmlns="http://www.w3.org/2000/svg" {box}><style>{STYLE}</style>\n{body}\n</svg>\n'
