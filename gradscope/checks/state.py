"""What a training step can change, kept so that it can be put back."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gradscope.random_numbers import random_state, set_random_state


@dataclass(frozen=True, slots=True, eq=False)
class Companions:
    """The optimizers, schedulers and scalers that work on a model."""

    optimizers: tuple[Optimizer, ...]
    schedulers: tuple[LRScheduler, ...]
    scalers: tuple[GradScaler, ...]

    @staticmethod
    def of(model: nn.Module, optimizer: Any = None, scheduler: Any = None, scaler: Any = None) -> Companions:
        """Those that were given, and those alive in this process that belong to the model.

        A user's step often holds them in a closure, where no argument could name them: the garbage collector knows them.
        """
        optimizers, schedulers, scalers = _listed(optimizer), _listed(scheduler), _listed(scaler)
        parameters = {id(p) for p in model.parameters()}
        kinds = _with_subclasses(Optimizer) | _with_subclasses(LRScheduler) | _with_subclasses(GradScaler)
        alive = [o for o in gc.get_objects() if type(o) in kinds]  # by type: isinstance would run users' __class__
        for one in alive:
            if isinstance(one, Optimizer) and _owns(one, parameters) and not _among(one, optimizers):
                optimizers.append(one)
        for one in alive:
            if isinstance(one, LRScheduler) and _among(getattr(one, "optimizer", None), optimizers):
                schedulers += [] if _among(one, schedulers) else [one]
            elif isinstance(one, GradScaler) and not _among(one, scalers):
                scalers.append(one)
        return Companions(tuple(optimizers), tuple(schedulers), tuple(scalers))


def _with_subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(_with_subclasses, type.__subclasses__(kind)))


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) else [given]


def _among(one: Any, many: Sequence[Any]) -> bool:
    return any(one is other for other in many)


def _owns(optimizer: Optimizer, parameters: set[int]) -> bool:
    groups = getattr(optimizer, "param_groups", None) or []
    return any(id(p) in parameters for group in groups for p in group["params"])


class Snapshot:
    """The whole state of a training step at one moment; ``restore()`` may be called any number of times."""

    def __init__(self, model: nn.Module, companions: Companions) -> None:
        self._model = model
        self._parameters = [_SavedParameter(p) for p in model.parameters()]
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self._modes = [(module, module.training) for module in model.modules()]
        self._optimizers = [_SavedOptimizer(one) for one in companions.optimizers]
        self._schedulers = [(one, copy.deepcopy(one.state_dict())) for one in companions.schedulers]
        self._scalers = [(one, _scaler_state(one)) for one in companions.scalers]
        self._random = RandomState()

    def restore(self) -> None:
        """Put everything back, into the same objects."""
        for parameter in self._parameters:
            parameter.restore()
        for module, name, buffer, was in self._buffers:
            module._buffers[name] = buffer
            _put_back(buffer, was)
        for module, mode in self._modes:
            module.training = mode
        for optimizer in self._optimizers:
            optimizer.restore()
        for scheduler, state in self._schedulers:
            scheduler.load_state_dict(copy.deepcopy(state))
        for scaler, state in self._scalers:
            vars(scaler).update(_copied(state))
            # A scaler that is not enabled has none.
            vars(scaler).get("_per_optimizer_states", {}).clear()
        # Last: a scheduler's load may print or draw.
        self._random.restore()


class RandomState:
    """The state of every global random generator: torch's, Python's and numpy's."""

    def __init__(self) -> None:
        self._torch = random_state()
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # the global state is what users' code draws from

    def restore(self) -> None:
        """Put the generators back to this state."""
        set_random_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


def reseed(seed: int) -> None:
    """Set every global random generator; only ever between a snapshot and its restore."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


class _SavedParameter:
    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.storage = parameter.data
        self.value = parameter.detach().clone()
        self.requires_grad = parameter.requires_grad
        self.grad = parameter.grad
        self.grad_value = None if parameter.grad is None else parameter.grad.detach().clone()

    def restore(self) -> None:
        p = self.parameter
        p.grad = None
        if p.dtype != self.storage.dtype or p.data_ptr() != self.storage.data_ptr():
            p.data = self.storage
        _put_back(p, self.value)
        p.requires_grad_(self.requires_grad)
        p.grad = self.grad
        if self.grad is not None and self.grad_value is not None:
            _put_back(self.grad, self.grad_value)


class _SavedOptimizer:
    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.state = [(key, _copied(value)) for key, value in optimizer.state.items()]
        self.groups = [(group, {k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups]

    def restore(self) -> None:
        self.optimizer.state.clear()
        for key, value in self.state:
            self.optimizer.state[key] = _copied(value)
        for group, values in self.groups:
            for name in [k for k in group if k != "params" and k not in values]:
                del group[name]
            group.update({k: _copied(v) for k, v in values.items()})


def _copied(value: Any) -> Any:
    """A copy in which tensors are cloned and containers are new."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_copied(v) for v in value)
    return value


def _scaler_state(scaler: GradScaler) -> dict[str, Any]:
    return {k: _copied(v) for k, v in vars(scaler).items() if k != "_per_optimizer_states"}


def _put_back(tensor: Tensor, value: Tensor) -> None:
    """Copy only where something changed, so that an untouched tensor keeps its version counter."""
    with torch.no_grad():
        if tensor.layout is not torch.strided or not torch.equal(tensor, value):
            tensor.copy_(value)
