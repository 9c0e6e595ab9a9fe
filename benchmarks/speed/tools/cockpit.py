"""Cockpit's ``economy`` instruments; its releases ended in 2021."""

from __future__ import annotations

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Runner, UnavailableError


class Economy(Runner):
    """Not run: it does not import beside a current BackPACK and setuptools."""

    def __init__(self, problem: Problem) -> None:
        raise UnavailableError("imports, but is not wired up")

    def step(self) -> None:
        """Nothing."""
