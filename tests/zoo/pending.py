"""Problems that fail for a reason that is known; strict, so that this list shrinks by itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from zoo.problem import Problem

PENDING: dict[str, str] = {}


def cases(problems: Iterable[Problem]) -> list[Any]:
    """Problems as parameters of a test."""
    return [
        pytest.param(p, marks=pytest.mark.xfail(reason=PENDING[p.name], strict=True)) if p.name in PENDING else p
        for p in problems
    ]
