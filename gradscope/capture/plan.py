"""How one module's calls are described, decided once."""

from __future__ import annotations

from torch.nn import Module

from gradscope.capture.layout import BatchDim, Layout, NoSamples, Rows
from gradscope.moments.leaf import Leaf
from gradscope.rules import Rule, find_rule


class Plan:
    """One module that owns parameters, and how its contributions are found.

    Attributes:
        name: qualified name in the watched model.
        module: the module.
        leaves: its own parameters, by local name.
        rule: closed form, or None.
        recompute: whether the module alone can be recomputed sample by sample.
        reason: why there is no closed form, in words; and why no recomputation either, if so.
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
        #: Whether tags have confirmed a recomputed module's layout.
        self.checked = False
        self._layouts: dict[tuple[object, ...], Layout] = {}
        self._rows: dict[tuple[object, ...], Rows] = {}

    def layout(self, key: tuple[object, ...]) -> Layout | None:
        """The layout that is known for calls of this kind, or None."""
        return self._layouts.get(key)

    def remember(self, key: tuple[object, ...], layout: Layout, every_row_seen: bool) -> None:
        """Keep a measured layout where that is safe.

        A row order is kept only once it came out the same twice, on inputs that gave every row a gradient: routing depends
        on the input.
        """
        if isinstance(layout, (BatchDim, NoSamples)):
            self._layouts[key] = layout
            return
        before = self._rows.get(key)
        same = before is not None and before.sample_of_row.equal(layout.sample_of_row)
        if same and every_row_seen:
            self._layouts[key] = layout
        else:
            self._layouts.pop(key, None)
        if every_row_seen:
            self._rows[key] = layout
