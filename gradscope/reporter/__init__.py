"""What users see of a report: an open set, one file and one line in ``REPORTERS`` each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from gradscope.reporter.html import html
from gradscope.reporter.jsonable import to_dict, to_json
from gradscope.reporter.log_line import log_line
from gradscope.reporter.plain import render
from gradscope.reporter.scalars import scalars
from gradscope.reporter.svg import svg
from gradscope.reporter.table import table

#: By name, what makes something to show or to send out of a report alone.
REPORTERS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "dict": to_dict,
        "html": html,
        "json": to_json,
        "log line": log_line,
        "scalars": scalars,
        "svg": svg,
        "table": table,
        "text": render,
    }
)

__all__ = ["REPORTERS", "html", "log_line", "render", "scalars", "svg", "table", "to_dict", "to_json"]
