"""Finding the models of a script, in the moment in which each is called for the first time."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from gradscope.capture.hook import find_owner
from gradscope.errors import GradscopeError
from gradscope.running.entrance import Entrance
from gradscope.running.names import label_of
from gradscope.running.optimizers import Optimizers
from gradscope.running.ownership import held_by, outermost_owners, stepped_by
from gradscope.running.watched import Watched
from gradscope.scope import Scope, watch

#: Steps of an optimizer after which no model of its is looked for any more.
_PATIENCE = 8

#: Models that one optimizer may step; where it steps more, they are layers whose model is never called itself.
_MODELS_OF_ONE = 8

OWN_RANKS = (
    "this process has started the other ranks itself, and nothing looks into those: start all of them under gradscope, "
    "torchrun ... -m gradscope run SCRIPT"
)


class Attaching:
    """Watches each model that an optimizer steps, from the first call on that can train it.

    Args:
        every: as in ``watch``.
        begun: called with each model that is watched from now on, and its scope.
        stepped: called with a watched model after a step that may have ended a window of it.
        is_rank: whether a launcher had started this process as one of several ranks.

    Attributes:
        watched: the models found, oldest first.
        refused: why others are not watched, by what they are called.
        left_alone: whether the script watches models of its own.
        unowned: classes of optimizers that stepped tensors of no module.
        optimizers_made: whether there was any optimizer.
        failures: what went wrong here, in words.
    """

    def __init__(
        self, every: int, begun: Callable[[Watched, Scope], None], stepped: Callable[[Watched], None], is_rank: bool
    ) -> None:
        self.watched: list[Watched] = []
        self.refused: dict[str, str] = {}
        self.left_alone = False
        self.unowned: dict[str, None] = {}
        self.optimizers_made = False
        self.failures: dict[str, None] = {}
        self._every = every
        self._begun = begun
        self._after_step = stepped
        self._is_rank = is_rank
        self._lock = threading.RLock()
        self._entrance = Entrance(self._arrive)
        self._optimizers = Optimizers(self._made, self._stepped)
        self._settled: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._passed: weakref.WeakSet[Module] = weakref.WeakSet()

    def begin(self) -> None:
        """Look out for optimizers."""
        self._optimizers.listen()

    def end(self) -> None:
        """Take everything off."""
        self._entrance.close()
        self._optimizers.stop()
        for watched in self.watched:
            self._safely(watched.end)

    def forget(self) -> None:
        """Take everything off in a forked process, which the original reports on."""
        self._entrance.close()
        self._optimizers.stop()
        for watched in self.watched:
            self._safely(watched.unhook)

    def _made(self) -> None:
        self.optimizers_made = True
        self._passed.clear()
        self._safely(self._entrance.open)

    # -- a module is called -------------------------------------------------------------------------------------------

    def _arrive(self, module: Module) -> None:
        if (
            module in self._passed
            or not torch.is_grad_enabled()
            or torch._C._current_graph_task_id() != -1
            or torch._C._get_tracing_state() is not None
        ):
            return
        with self._lock:
            self._safely(lambda: self._consider(module))

    def _consider(self, module: Module) -> None:
        known = self._optimizers.all()
        waiting = [optimizer for optimizer in known if optimizer not in self._settled]
        for watched in self._alive():
            for optimizer in waiting:
                if watched.parameters & stepped_by(optimizer).keys():
                    watched.add(optimizer)
        own = held_by(module)
        if any(own & stepped_by(optimizer).keys() for optimizer in waiting):
            self._attach(self._whole(module, own, waiting), known)
        self._passed.add(module)
        self._settle(waiting)

    def _whole(self, module: Module, own: set[int], waiting: list[Optimizer]) -> Module:
        """The module itself; or what holds it, where a single layer is called and its model never is."""
        if next(module.children(), None) is not None:
            return module
        wanted = {key for optimizer in waiting if own & (held := stepped_by(optimizer).keys()) for key in held}
        if wanted <= own:
            return module
        return next((owner for owner in outermost_owners(wanted) if wanted <= held_by(owner)), module)

    def _attach(self, module: Module, known: list[Optimizer]) -> None:
        own = held_by(module)
        optimizers = [optimizer for optimizer in known if own & stepped_by(optimizer).keys()]
        for earlier in self._alive():
            if not earlier.parameters & own:
                continue
            if own <= earlier.parameters or earlier.model is module:
                return
            # A part of it was called by itself before.
            earlier.end()
            if not earlier.measured:
                self.watched.remove(earlier)
        if any(find_owner(part) is not None for part in module.modules()):
            self.left_alone = True
            self._leave(module)
            return
        self._watch(module, optimizers)

    def _watch(self, module: Module, optimizers: list[Optimizer]) -> None:
        label = label_of(module, [watched.label for watched in self.watched])
        if refusal := self._refusal(optimizers):
            self._refuse(module, label, refusal)
            return
        if self.watched:
            # Models that the script has dropped are held by our hooks in circles, which nobody collects so soon otherwise.
            for earlier in self.watched:
                earlier.settle()
            gc.collect()
        try:
            scope = watch(module, *optimizers, every=self._every)
        except GradscopeError as error:
            self._refuse(module, label, str(error))
            return
        watched = Watched(label, module, scope, optimizers)
        self.watched.append(watched)
        self._begun(watched, scope)

    def _refusal(self, optimizers: list[Optimizer]) -> str:
        for optimizer in optimizers:
            if sum(watched.steps_with(optimizer) for watched in self.watched) >= _MODELS_OF_ONE:
                return (
                    f"{type(optimizer).__name__} steps more than {_MODELS_OF_ONE} modules that are called one by one, outside of "
                    "any model; use gradscope.watch in the script"
                )
        distributed = sys.modules.get("torch.distributed")
        together = distributed is not None and distributed.is_available() and distributed.is_initialized()
        if together and distributed.get_world_size() > 1 and not self._is_rank:  # type: ignore[union-attr]
            return OWN_RANKS
        return ""

    def _refuse(self, module: Module, label: str, reason: str) -> None:
        self.refused[label] = reason
        self._leave(module)

    def _leave(self, module: Module) -> None:
        """Look at this model, its parts and its optimizers no more."""
        self._passed.update(module.modules())
        own = held_by(module)
        self._settled.update(o for o in self._optimizers.all() if own & stepped_by(o).keys())

    def _alive(self) -> list[Watched]:
        """The watched models that the script still has."""
        return [watched for watched in self.watched if watched.model is not None]

    def _settle(self, waiting: list[Optimizer]) -> None:
        """Optimizers all of whose tensors are watched need no further looking for."""
        covered = {key for watched in self._alive() for key in watched.parameters}
        for optimizer in waiting:
            if stepped_by(optimizer).keys() <= covered:
                self._settled.add(optimizer)
        if all(optimizer in self._settled for optimizer in self._optimizers.all()):
            self._entrance.close()

    # -- an optimizer has stepped -------------------------------------------------------------------------------------

    def _stepped(self, optimizer: Optimizer) -> None:
        self._safely(lambda: self._note_step(optimizer))

    def _note_step(self, optimizer: Optimizer) -> None:
        if optimizer not in self._settled:
            with self._lock:
                self._look_around(optimizer)
        for watched in self.watched:
            if watched.steps_with(optimizer):
                watched.steps += 1
                self._after_step(watched)

    def _look_around(self, optimizer: Optimizer) -> None:
        """It steps what no call has shown: calls inside compiled functions, or ``model.forward(x)``, pass by."""
        steps = self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        self._optimizers.note(optimizer)
        if steps == 1 and not any(watched.steps_with(optimizer) for watched in self.watched):
            known = self._optimizers.all()
            owners = outermost_owners(stepped_by(optimizer).keys())
            for owner in owners:
                self._attach(owner, known)
            if not owners:
                self.unowned[type(optimizer).__name__] = None
        if steps >= _PATIENCE:
            self._settled.add(optimizer)
        self._settle([optimizer])

    # -- giving way ---------------------------------------------------------------------------------------------------

    def give_way(self, module: Module) -> None:
        """The script itself watches this model: let go of it."""
        own = held_by(module)
        for watched in self._alive():
            if watched.parameters & own:
                watched.end()
                self.watched.remove(watched)
                self.left_alone = True

    def _safely(self, function: Callable[[], Any]) -> None:
        try:
            function()
        except Exception as error:  # the script must go on whatever fails here; it is said at its end
            self.failures[f"{type(error).__name__}: {str(error)[:300]}"] = None


def is_rank() -> bool:
    """Whether a launcher (torchrun, srun, mpirun) started this process as one of several."""
    return any(name in os.environ for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"))
