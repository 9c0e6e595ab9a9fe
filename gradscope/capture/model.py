"""What is in a model: its parameters by identity, and the modules that own them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter, methodcaller
from typing import Any

import torch
from torch import nn
from torch.nn import Module

from gradscope.capture.hook import UNASKED, find_owner
from gradscope.capture.plan import Plan
from gradscope.errors import AlreadyWatchedError, InvalidArgumentError, UnwatchableModelError
from gradscope.moments.leaf import Leaf
from gradscope.window import ParameterInfo


def unwrapped(model: Module) -> Module:
    """The user's own model: without ``DistributedDataParallel`` and ``torch.compile`` around it."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod") and isinstance(model._orig_mod, Module):
            model = model._orig_mod
        else:
            return model


#: Prefixes that wrappers inside a model put into names.
_WRAPPERS = re.compile(r"(_orig_mod|_checkpoint_wrapped_module)(\.|$)")


def users_name(name: str) -> str:
    """The name as it is without ``torch.compile`` and checkpoint wrappers around parts of the model."""
    return _WRAPPERS.sub("", name).rstrip(".")


def check_model(model: Any) -> None:
    """Refuse what hooks cannot see into, at once and with the reason.

    Raises:
        InvalidArgumentError: it is no module.
        UnwatchableModelError: there is nothing to measure, or hooks would never fire.
        AlreadyWatchedError: an open scope watches it, or a part of it.
    """
    if not isinstance(model, Module):
        raise InvalidArgumentError(
            f"watch: expected a torch.nn.Module, got {type(model).__name__}. Pass the model itself."
        )
    for let_go in UNASKED:
        let_go(model)
    name = type(model).__name__
    if isinstance(model, nn.DataParallel):
        raise UnwatchableModelError(
            "nn.DataParallel runs copies of the model in threads, whose hooks are the original's: samples would be counted "
            "wrongly. Use DistributedDataParallel, or watch the model without the wrapper on one device."
        )
    for path, module in model.named_modules():
        if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            what = "a traced" if type(module).__name__ == "TopLevelTracedModule" else "a scripted"
            raise UnwatchableModelError(
                f"{path or name} is {what} module (TorchScript): hooks do not run inside it. Watch the model before "
                "torch.jit.script or torch.jit.trace."
            )
        if find_owner(module) is not None:
            raise AlreadyWatchedError(
                f"{path or name} is watched already. Close the other scope first (scope.close()), or use that one."
            )
    parameters = list(model.parameters())
    if not parameters:
        raise UnwatchableModelError(f"{name} has no parameters, so there is no gradient to look into.")
    meta = [key for key, parameter in model.named_parameters() if parameter.is_meta]
    if meta:
        raise UnwatchableModelError(
            f"{name} is on the meta device ({meta[0]!r} and {len(meta) - 1} more hold no numbers). Materialise it first, "
            "with to_empty(device=...) and its weights."
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise UnwatchableModelError(
            f"none of the {len(parameters)} parameters of {name} requires a gradient. Unfreeze what you train, then watch."
        )


def find_parameters(model: Module) -> list[Leaf]:
    """The model's parameters, one entry each, under the first name of ``named_parameters``."""
    names: dict[int, list[str]] = {}
    found: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(users_name(name))
        found.setdefault(id(parameter), parameter)
    leaves: list[Leaf] = []
    for key, parameter in found.items():
        first, *others = names[key]
        layer = first.rpartition(".")[0]
        info = ParameterInfo(first, layer, parameter.numel(), tuple(parameter.shape), tuple(others))
        leaves.append(Leaf(len(leaves), info, parameter))
    return leaves


def find_plans(model: Module, leaves: Sequence[Leaf]) -> list[Plan]:
    """The modules that own parameters, each with its leaves by local name."""
    by_id = {id(leaf.parameter): leaf for leaf in leaves}
    plans = []
    for name, module in model.named_modules():
        own = {
            local: by_id[id(parameter)]
            for local, parameter in module._parameters.items()
            if parameter is not None and id(parameter) in by_id
        }
        if own:
            plans.append(Plan(users_name(name), module, own))
    return plans


def find_ignored(model: Module, leaves: Iterable[Leaf], ignore: Iterable[str | Module]) -> frozenset[str]:
    """Names of the parameters that ``ignore`` leaves out.

    Raises:
        InvalidArgumentError: an entry names nothing in the model.
    """
    modules = {id(module): users_name(name) for name, module in model.named_modules()}
    leaves = list(leaves)
    ignored: set[str] = set()
    for entry in ignore:
        if isinstance(entry, Module):
            if id(entry) not in modules:
                raise InvalidArgumentError(f"ignore: {type(entry).__name__} is not part of the watched model.")
            path = modules[id(entry)]
        else:
            path = users_name(entry)
        hit = {
            leaf.info.name
            for leaf in leaves
            for name in (leaf.info.name, *leaf.info.aliases)
            if not path or name == path or name.startswith(f"{path}.")
        }
        if not hit:
            raise InvalidArgumentError(f"ignore: {entry!r} is neither a parameter nor a module of the model.")
        ignored |= hit
    return frozenset(ignored)


_PARAMETERS, _MODULES, _VALUES = attrgetter("_parameters"), attrgetter("_modules"), methodcaller("values")


class Structure:
    """Which parameters and modules a model is made of, to notice changes in a few microseconds.

    Args:
        model: it and all modules in it are kept alive, so that no other object can have their identities.
    """

    def __init__(self, model: Module) -> None:
        self._modules = tuple(model.modules())
        self._found = self._look()

    def _look(self) -> list[int]:
        # Without a loop of ours: this is done at each step.
        own = map(_PARAMETERS, self._modules), map(_MODULES, self._modules)
        return list(map(id, chain.from_iterable(map(_VALUES, chain(*own)))))

    @property
    def unchanged(self) -> bool:
        """Whether nothing has been added, replaced or taken away; False says that a closer look is due."""
        return self._look() == self._found


def signature(model: Module) -> tuple[tuple[int, bool], ...]:
    """What changes when a parameter is added, replaced, frozen or unfrozen."""
    found: list[tuple[int, bool]] = []
    stack, seen = [model], {id(model)}
    while stack:
        module = stack.pop()
        found.extend((id(p), p.requires_grad) for p in module._parameters.values() if p is not None)
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                stack.append(child)
    return tuple(found)
