"""A report as plain data: numbers, strings, lists and dicts that any JSON reader takes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope.report import Report

#: Elementwise tensors are as large as the model: read them from the report itself.
_LEFT_OUT = frozenset({"variance"})


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain data.

    A number that is not finite is None, and the record that holds it says under ``"not_finite"`` which it is:
    ``{"noise_scale": null, "not_finite": {"noise_scale": "nan"}}``, in lists by position
    (``"noise_scale_interval.1": "inf"``). ``variance`` is left out.
    """
    return _record(report)


def to_json(report: Report, *, indent: int | None = None) -> str:
    """``to_dict`` as one JSON document."""
    return json.dumps(to_dict(report), indent=indent, allow_nan=False)


def _record(record: Any) -> dict[str, Any]:
    flags: dict[str, str] = {}
    plain = {
        field.name: _plain(getattr(record, field.name), field.name, flags)
        for field in dataclasses.fields(record)
        if field.name not in _LEFT_OUT
    }
    return plain | ({"not_finite": flags} if flags else {})


def _plain(value: Any, key: str, flags: dict[str, str]) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        flags[key] = str(value)
        return None
    if dataclasses.is_dataclass(value):
        return _record(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item, f"{key}.{name}", flags) for name, item in value.items()}
    if hasattr(value, "tolist"):  # a tensor: torch itself is not needed here
        value = value.tolist()
    if isinstance(value, (tuple, list)):
        return [_plain(item, f"{key}.{position}", flags) for position, item in enumerate(value)]
    return value
