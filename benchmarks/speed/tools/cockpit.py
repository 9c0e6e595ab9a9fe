"""Cockpit's ``economy`` instruments; its last release is of 2021 and does not import beside a current setuptools."""

from __future__ import annotations

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Runner, UnavailableError


class Economy(Runner):
    """Never run: where it does import, what it shows are histograms, which are not held against single samples here."""

    def __init__(self, problem: Problem) -> None:
        raise UnavailableError("histograms and tests, no figure per parameter")

    def step(self) -> None:
        """Nothing."""
