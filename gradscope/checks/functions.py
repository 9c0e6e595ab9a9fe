"""Which custom ``autograd.Function`` could have spoiled a set of parameters' gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from gradscope.checks.layout import Layout


def custom_functions(loss: Tensor, layout: Layout, wrong: Sequence[str]) -> tuple[str, ...]:
    """Names of the custom functions in the loss's graph behind which every wrong parameter lies.

    Those whose parameters are exactly the wrong ones come alone: what lies between two functions tells them apart.
    """
    names = {id(p): name for p, name in zip(layout.parameters, layout.names, strict=True)}
    reached: dict[Any, frozenset[str]] = {}
    found: dict[str, frozenset[str]] = {}
    for node in _children_first(loss.grad_fn):
        variable = getattr(node, "variable", None)
        own = frozenset({names[id(variable)]} if id(variable) in names else ())
        reached[node] = own.union(*(reached[child] for child in _children(node)))
        if isinstance(node, BackwardCFunction):
            name = type(node).__name__.removesuffix("Backward")
            found[name] = found.get(name, frozenset()) | reached[node]
    exact = [name for name, behind in found.items() if behind == set(wrong)]
    return tuple(exact or [name for name, behind in found.items() if set(wrong) <= behind])


def _children(node: Any) -> list[Any]:
    return [child for child, _ in node.next_functions if child is not None]


def _children_first(root: Any) -> list[Any]:
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child in _children(node)]
    return order
