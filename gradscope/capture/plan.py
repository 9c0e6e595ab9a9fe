"""How one module's calls are described, decided once."""

from __future__ import annotations

from torch.nn import Module

from gradscope.capture.layout_memory import LayoutMemory
from gradscope.moments.leaf import Leaf
from gradscope.rules import Rule, find_rule
from gradscope.rules.linear import LINEAR


class Plan:
    """One module that owns parameters, and how its contributions are found.

    Attributes:
        name: qualified name in the watched model.
        module: the module.
        leaves: its own parameters, by local name.
        rule: closed form, or None.
        recompute: whether the module alone can be recomputed sample by sample.
        reason: why there is no closed form, in words; and why no recomputation either, if so.
        own: the same, to go through.
        layouts: what tags have shown of its calls.
        checked: graphs in which tags have confirmed the layout of a recomputed module.
        by_operators: the operators that consume its parameters describe them, so that nothing need be recomputed.
    """

    def __init__(self, name: str, module: Module, leaves: dict[str, Leaf]) -> None:
        self.name = name
        self.module = module
        self.leaves = leaves
        self.rule: Rule | None
        self.rule, self.reason = find_rule(module)
        below = next((child for child in module.modules() if child is not module and child._parameters), None)
        self.recompute = self.rule is None and below is None
        if self.rule is None and below is not None:
            self.reason = f"{self.reason}, and recomputing it would recompute the layers inside it"
        weight, bias = leaves.get("weight"), leaves.get("bias")
        if self.rule is LINEAR and weight is not None and bias is not None:
            bias.weight = weight
        self.own = tuple(leaves.items())
        self.layouts = LayoutMemory()
        self.checked: set[object] = set()
        self.by_operators = False

    def wanted(self) -> dict[str, Leaf]:
        """Those of its parameters that are to be measured; not to be changed."""
        for _, leaf in self.own:
            if leaf.ignored or not leaf.parameter.requires_grad:
                return {name: leaf for name, leaf in self.own if leaf.wanted}
        return self.leaves
