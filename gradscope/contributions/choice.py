"""Which of several exact algorithms computes a figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

#: What a choice depends on: the kind of contribution, its shapes, dtype and kind of device.
Case = tuple[object, ...]


class Choice:
    """The cheapest by the cost model, so that two runs give the same bits; each case is decided once.

    Attributes:
        found: what measuring has chosen, by the case as text.
    """

    def __init__(self) -> None:
        self._decided: dict[Case, str] = {}
        self.found: dict[str, str] = {}

    def restore(self, found: Mapping[str, str]) -> None:
        """Take over what another run has found; what is only estimated needs nothing from it."""

    def __call__(self, case: Case, costs: Callable[[], Mapping[str, float]], run: Callable[[str], object]) -> str:
        """The algorithm for a case.

        Args:
            case: what tells this contribution from those that may need another algorithm.
            costs: estimated nanoseconds of each algorithm that can be used.
            run: does the work with one of them.
        """
        name = self._decided.get(case)
        if name is None:
            name = self._decided[case] = self._decide(case, costs(), run)
        return name

    def _decide(self, case: Case, costs: Mapping[str, float], run: Callable[[str], object]) -> str:
        return min(costs, key=costs.__getitem__)


class Forced(Choice):
    """One algorithm wherever it can be used, for tests and experiments; the cost model elsewhere.

    Args:
        names: what is to be used, at most one of them for each kind of contribution.
    """

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = names

    def _decide(self, case: Case, costs: Mapping[str, float], run: Callable[[str], object]) -> str:
        return next((name for name in self._names if name in costs), super()._decide(case, costs, run))


class Measured(Choice):
    """The fastest, found by trying all that the cost model does not rule out, once for each case.

    Figures of another run agree to rounding only, unless it is given what was found here.
    """

    #: An algorithm that should take this many times as long as the best is not tried.
    HOPELESS = 8.0
    ROUNDS = 3

    def restore(self, found: Mapping[str, str]) -> None:
        self._decided.clear()
        self.found.update(found)

    def _decide(self, case: Case, costs: Mapping[str, float], run: Callable[[str], object]) -> str:
        key = " ".join(str(part) for part in case)
        if self.found.get(key) not in costs:
            best = min(costs.values())
            tried = [candidate for candidate, cost in costs.items() if cost <= self.HOPELESS * best]
            fastest = min(tried, key=lambda candidate: self._time(candidate, run)) if len(tried) > 1 else tried[0]
            self.found[key] = fastest
        return self.found[key]

    def _time(self, name: str, run: Callable[[str], object]) -> float:
        """Shortest of a few runs in seconds; whatever else the machine does only adds to it."""
        seconds = []
        for _ in range(self.ROUNDS):
            started = time.perf_counter()
            float(run(name))  # type: ignore[arg-type]
            seconds.append(time.perf_counter() - started)
        return min(seconds)
