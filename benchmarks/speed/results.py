"""Results as JSON lines: appended to by every run, read by the table and the pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def default_path(device: str) -> Path:
    """The file that is kept in the repository."""
    return HERE / "results" / f"{device}.jsonl"


def append(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Add results; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def newest(path: Path, kind: str, *keys: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """The last result of this kind for each combination of these fields."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line["kind"] == kind:
                found[tuple(str(line[key]) for key in keys)] = line
    return found


def compact(path: Path) -> None:
    """Keep only the last result of each measurement."""
    lines = [
        *newest(path, "time", "model", "tool").values(),
        *newest(path, "memory", "model", "tool").values(),
        *newest(path, "growth", "axis", "size", "tool").values(),
    ]
    path.write_text("")
    append(path, lines)
