"""The records, from a run log's lines. Whatever a line holds, a bad one raises ValueError and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from gradscope.coverage import STATUSES, Coverage, Status
from gradscope.window import ParameterInfo, ParameterSums, Window

_BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError)

#: More samples than any window has: a line that says so is corrupt, and building its ids would take all memory.
_MOST_SAMPLES = 100_000_000


def record(line: bytes) -> dict[str, Any]:
    """The JSON object on one line.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def parameters(header: Mapping[str, Any]) -> tuple[ParameterInfo, ...]:
    """The parameter table of a header.

    Raises:
        ValueError: the header holds none.
    """
    try:
        return tuple(
            ParameterInfo(
                name=_text(row["name"]),
                layer=_text(row["layer"]),
                numel=_count(row["numel"]),
                shape=tuple(map(_count, row["shape"])),
                aliases=tuple(map(_text, row.get("aliases", ()))),
            )
            for row in header["parameters"]
        )
    except _BROKEN as error:
        raise ValueError(f"its parameter table is damaged ({error!r})") from error


def window(line: Mapping[str, Any], names: Sequence[str]) -> tuple[Window, float | None]:
    """The window that a line holds, and its overhead.

    Raises:
        ValueError: the line holds no window, or a damaged one.
    """
    try:
        columns = [_text(name) for name in line.get("names", names)]
        overhead = line.get("overhead")
        return _window(line, columns), None if overhead is None else _number(overhead)
    except _BROKEN as error:
        raise ValueError(f"it is no complete window ({error!r})") from error


def _window(line: Mapping[str, Any], columns: Sequence[str]) -> Window:
    samples = _count(line["samples"])
    if not 0 < samples < _MOST_SAMPLES:
        raise ValueError(f"{samples} samples")
    return Window(
        index=_count(line["window"]),
        samples=samples,
        micro_steps=_count(line["micro_steps"]),
        weight_sq_sum=_number(line["weight_sq_sum"]),
        parameters=_sums(line, columns),
        coverage=_coverage(line["coverage"], columns),
        ids=_ids(line.get("ids"), samples),
        worst={
            None if layer is None else _text(layer): tuple((_count(i), _number(ratio)) for i, ratio in found)
            for layer, found in line.get("worst", ())
        },
        notices=tuple(map(_text, line.get("notices", ()))),
        held_bytes=_count(line.get("held_bytes", 0)),
    )


def _sums(line: Mapping[str, Any], columns: Sequence[str]) -> dict[str, ParameterSums]:
    pairs = line.get("preconditioned") or [None] * len(columns)
    rows = zip(columns, line["grad_sq_norm"], line["contribution_sq_sum"], pairs, strict=True)
    return {
        name: ParameterSums(
            grad_sq_norm=_number(grad_sq_norm),
            contribution_sq_sum=_number(contribution_sq_sum),
            preconditioned=None if pair is None else (_number(pair[0]), _number(pair[1])),
        )
        for name, grad_sq_norm, contribution_sq_sum, pair in rows
        if grad_sq_norm is not None
    }


def _coverage(found: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Coverage]:
    ways = [(_status(status), _text(rule), _text(reason)) for status, rule, reason in found["ways"]]
    rows = zip(columns, found["way"], found["error"], strict=True)
    return {name: Coverage(*ways[_count(way)], _number(error)) for name, way, error in rows if way is not None}


def _ids(found: Mapping[str, Any] | None, samples: int) -> tuple[str, ...] | None:
    if found is None:
        return None
    ids = [""] * samples
    for position, name in found.items():
        ids[_count(int(position))] = _text(name)
    return tuple(ids)


def _status(value: Any) -> Status:
    if value not in STATUSES:
        raise ValueError(f"unknown status {value!r}")
    return cast(Status, value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or value is None:
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
