"""A scope that lives as long as a trainer's fit, and gives figures to the trainer's logger."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch.nn import Module

from gradscope import reporter
from gradscope.errors import InvalidArgumentError, StateMismatchError
from gradscope.scope import Scope, watch

#: What a callback says itself; the rest of ``watch``'s keywords are the user's.
_OWN = frozenset({"scaler"})


class Watching:
    """What every callback does: watches at the beginning of a fit, logs every few windows, lets go at its end.

    Args:
        log_every: windows between two logs; None leaves it to the trainer's own rhythm.
        depth: how far layers are opened, as in ``Report.groups``; None takes blocks.
        options: keywords of ``gradscope.watch``.

    Attributes:
        scope: that of the current fit, or of the last one, whose figures stay readable; None before the first.

    Raises:
        InvalidArgumentError: ``watch`` has no such option, or ``log_every`` is no number of windows.
    """

    def __init__(self, log_every: int | None, depth: int | None, options: Mapping[str, Any]) -> None:
        if log_every is not None and (isinstance(log_every, bool) or not isinstance(log_every, int) or log_every < 1):
            raise InvalidArgumentError(f"GradscopeCallback: log_every is a whole number from 1 on, got {log_every!r}.")
        known = {
            name
            for name, parameter in inspect.signature(watch).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in _OWN
        }
        unknown = sorted(set(options) - known)
        if unknown:
            raise InvalidArgumentError(
                f"GradscopeCallback: gradscope.watch has no option {', '.join(unknown)}. It has {', '.join(sorted(known))}."
            )
        self.log_every = log_every
        self.depth = depth
        self.options = dict(options)
        self.scope: Scope | None = None
        self._logged = 0
        self._state: Mapping[str, Any] | None = None

    def begin(self, model: Module, *optimizers: Any, scaler: Any) -> Scope:
        """Watch; a scope that an earlier fit left open is closed first."""
        if self.scope is not None:
            self.scope.close()
        self.scope = scope = watch(model, *optimizers, scaler=scaler, **self.options)
        if self._state is not None:
            try:
                scope.load_state_dict(self._state)
            except StateMismatchError as error:
                scope._session.history.warn(f"the state of an earlier fit was not taken over: {error}")
        self._logged, self._state = scope._session.history.index, None
        return scope

    def log(self, write: Callable[[dict[str, float]], Any], every: int, *, rest: bool = False) -> None:
        """Give the figures to the trainer's logger if it is time.

        Args:
            write: takes them.
            every: windows between two logs.
            rest: whether a single window since the last log is enough: the fit is about to end.
        """
        scope = self.scope
        if scope is None:
            return
        passed = scope._session.history.index - self._logged
        if passed >= (1 if rest else every):
            self._logged += passed
            scope._session._safely(lambda: _write(scope, self.depth, write))

    def end(self) -> None:
        """Let go of the model."""
        if self.scope is not None:
            self.scope.close()

    def state(self) -> dict[str, Any]:
        """What a resumed fit needs to go on; empty before the first."""
        return {} if self.scope is None else self.scope.state_dict()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take over a state at the beginning of the next fit."""
        self._state = state or None


def _write(scope: Scope, depth: int | None, write: Callable[[dict[str, float]], Any]) -> None:
    figures = reporter.scalars(scope.report(), depth)
    if figures:
        write(figures)
