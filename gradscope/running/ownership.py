"""Which modules own parameters that only an optimizer is known to hold."""

from __future__ import annotations

import gc
from collections.abc import Set

from torch.nn import Module
from torch.optim import Optimizer


def stepped_by(optimizer: Optimizer) -> dict[int, int]:
    """Ids of the tensors that an optimizer steps and that require a gradient, with their sizes."""
    return {id(p): p.numel() for group in optimizer.param_groups for p in group["params"] if p.requires_grad}


def held_by(module: Module) -> set[int]:
    """Ids of a module's parameters, those below it included."""
    return {id(parameter) for parameter in module.parameters()}


def outermost_owners(tensors: Set[int]) -> list[Module]:
    """The modules that hold any of these tensors and lie in no other such module, the one with most of them first.

    Every object that the garbage collector knows is looked at: a module knows its children, and not its parents.
    """
    # type() and not isinstance(): lazy proxies import what they stand for when they are asked for their class.
    modules = [thing for thing in gc.get_objects() if issubclass(type(thing), Module)]
    holding = {id(module): (module, held_by(module) & tensors) for module in modules if "_modules" in module.__dict__}
    holding = {key: (module, held) for key, (module, held) in holding.items() if held}
    inside = {id(child) for module, _ in holding.values() for child in module.children()}
    outermost = [(module, held) for key, (module, held) in holding.items() if key not in inside]
    outermost.sort(key=lambda pair: -len(pair[1]))
    chosen: list[Module] = []
    taken: set[int] = set()
    for module, held in outermost:
        if not held & taken:
            chosen.append(module)
            taken |= held
    return chosen
