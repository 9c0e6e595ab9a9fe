"""One model that was found and is watched, held so that the script may still let go of it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch.nn import Module
from torch.optim import Optimizer

from gradscope.report import Report
from gradscope.running.names import word_of
from gradscope.running.ownership import held_by
from gradscope.scope import Scope


class Watched:
    """A model, its scope, and what is left of both when the script has dropped the model.

    The scope lives as long as the model, whose hooks hold it; what was measured lives on here.

    Args:
        label: what it is called.
        model: as the script called it.
        scope: that watches it.
        optimizers: that step it.
    """

    def __init__(self, label: str, model: Module, scope: Scope, optimizers: Iterable[Optimizer]) -> None:
        self.label = label
        self.word = word_of(label)
        self.parameters = held_by(model)
        self.steps = 0
        self._model = weakref.ref(model)
        self._session = weakref.ref(scope._session)
        self._history = scope._session.history
        self._infos = scope._session.parameters
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet(optimizers)
        self.optimizer_names = [type(optimizer).__name__ for optimizer in self._optimizers]

    @property
    def model(self) -> Module | None:
        """The model, or None once the script has let go of it."""
        return self._model()

    @property
    def measured(self) -> int:
        """Windows measured so far."""
        return self._history.measured

    @property
    def summary(self) -> str:
        """``netG (Generator): 3,576,704 parameters, stepped by Adam``."""
        count = sum(info.numel for info in self._infos)
        return f"{self.label}: {count:,} parameters, stepped by {' and '.join(self.optimizer_names) or 'no optimizer'}"

    def steps_with(self, optimizer: Optimizer) -> bool:
        """Whether this optimizer's steps end its windows."""
        return optimizer in self._optimizers

    def add(self, optimizer: Optimizer) -> None:
        """One more optimizer steps this model."""
        session = self._session()
        if session is not None and optimizer not in self._optimizers:
            session.add_optimizer(optimizer)
            self._optimizers.add(optimizer)
            self.optimizer_names = list(dict.fromkeys([*self.optimizer_names, type(optimizer).__name__]))

    def report(self) -> Report:
        """What was found over the last windows."""
        session = self._session()
        if session is not None:
            self._infos = session.parameters
        return self._history.report(self._infos)

    def settle(self) -> int:
        """Compute the figures that wait, which hold the model until then; how many windows there are."""
        return len(self._history.windows)

    def unhook(self) -> None:
        """Take the hooks off in a forked process."""
        session = self._session()
        if session is not None:
            session.unhook()

    def end(self) -> None:
        """Take the hooks off; what was measured stays."""
        session = self._session()
        if session is not None:
            self._infos = session.parameters
            session.end()
