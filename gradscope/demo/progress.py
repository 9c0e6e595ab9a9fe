"""How far the demo is, live: a bar, the loss, the noise scale as it is known by now."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from gradscope.scope import Scope

#: Seconds between two looks at the report: it costs more than a step of a tiny model, and nobody reads faster.
_PAUSE = 0.5


class Show(Protocol):
    """Called after each step of the optimizer."""

    def __call__(self, loss: float, scope: Scope) -> None:
        """Advance by one step."""


@contextmanager
def progress(steps: int) -> Iterator[Show]:
    """A live line on stderr while the context is open; nothing at all where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.description}", markup=False),
        TimeRemainingColumn(),
    )
    # `is_terminal` is also true on a pipe under FORCE_COLOR, where a live line would leave cursor codes in a log.
    live = console.file.isatty() and console.is_terminal and not console.is_dumb_terminal
    with Progress(*columns, console=console, disable=not live, expand=True) as bar:
        line = bar.add_task("", total=steps)
        read_at = -math.inf
        noise = ""

        def show(loss: float, scope: Scope) -> None:
            nonlocal read_at, noise
            if live and time.monotonic() - read_at > _PAUSE:
                noise = _noise(scope)
                read_at = time.monotonic()
            bar.update(line, advance=1, description=f"loss {loss:.3f}  {noise}")

        yield show


def _noise(scope: Scope) -> str:
    total = scope.report().total
    return f"noise scale {total.noise_scale:,.0f}" if total.resolved else "noise scale not resolved yet"
