"""A run log's lines, from the records."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from gradscope.coverage import Coverage
from gradscope.runlog.schema import MARK, VERSION
from gradscope.runlog.worst import Worst, worst_of
from gradscope.window import ParameterInfo, Window


def header_line(parameters: Sequence[ParameterInfo]) -> bytes:
    """The first line: the version of the schema and the model's parameter table."""
    table = [
        {
            "name": info.name,
            "layer": info.layer,
            "numel": info.numel,
            "shape": list(info.shape),
            "aliases": list(info.aliases),
        }
        for info in parameters
    ]
    return _line({MARK: VERSION, "parameters": table})


def window_line(window: Window, parameters: Sequence[ParameterInfo], overhead: float | None = None) -> bytes:
    """One window: its scalars; figures as columns in the order of ``parameters``, null where there are none.

    Tensors are left out, and of the samples' norms and ids all but those of samples that stand out.
    """
    names = [info.name for info in parameters]
    known = set(names)
    worst = worst_of(parameters, window)
    others = [name for name in dict.fromkeys([*window.coverage, *window.parameters]) if name not in known]
    columns = [*names, *others]
    record: dict[str, Any] = {
        "window": window.index,
        "samples": window.samples,
        "micro_steps": window.micro_steps,
        "weight_sq_sum": number(window.weight_sq_sum),
        **({"names": columns} if others else {}),
        **_sums(window, columns),
        "coverage": _coverage(window, columns),
        "worst": [[layer, [[i, number(ratio)] for i, ratio in found]] for layer, found in worst.items()],
        "ids": _ids(window, worst),
        "notices": list(window.notices),
        "held_bytes": window.held_bytes,
        "overhead": None if overhead is None else number(overhead),
    }
    return _line(record)


def number(value: float) -> float | str:
    """``value``, or the words ``"nan"``, ``"inf"``, ``"-inf"``, since JSON has no such numbers."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def _sums(window: Window, columns: Iterable[str]) -> dict[str, Any]:
    rows = [window.parameters.get(name) for name in columns]
    found: dict[str, Any] = {
        "grad_sq_norm": [None if row is None else number(row.grad_sq_norm) for row in rows],
        "contribution_sq_sum": [None if row is None else number(row.contribution_sq_sum) for row in rows],
    }
    pairs = [None if row is None or row.preconditioned is None else [*map(number, row.preconditioned)] for row in rows]
    return found | ({"preconditioned": pairs} if any(pairs) else {})


def _coverage(window: Window, columns: Iterable[str]) -> dict[str, Any]:
    """Most parameters are measured alike, so each way is spelled out once and referred to by position."""
    ways: dict[tuple[str, str, str], int] = {}
    rows = [window.coverage.get(name) for name in columns]
    return {
        "way": [None if row is None else ways.setdefault(_way(row), len(ways)) for row in rows],
        "error": [None if row is None else number(row.error) for row in rows],
        "ways": [list(way) for way in ways],
    }


def _way(coverage: Coverage) -> tuple[str, str, str]:
    return coverage.status, coverage.rule, coverage.reason


def _ids(window: Window, worst: Worst) -> dict[str, str] | None:
    if window.ids is None:
        return None
    standing_out = sorted({i for found in worst.values() for i, _ in found})
    return {str(i): window.ids[i] for i in standing_out}
