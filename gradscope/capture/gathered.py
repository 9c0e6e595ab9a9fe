"""Parameters of which every rank holds a part, where they are whole: while their layer runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gradscope.capture.plan import Plan
from gradscope.moments.leaf import Leaf


class Gathered:
    """Finds what ``fully_shard`` has gathered: a tensor of its own, which lies in the parameter's place for that time.

    Args:
        plans: the layers that own parameters.
        hang: hangs hooks on a leaf's ``live`` tensor.
    """

    def __init__(self, plans: Sequence[Plan], hang: Callable[[Leaf], None]) -> None:
        self._plans, self._hang = plans, hang
        self._missing = list(plans)

    def forget(self) -> None:
        """The hooks are gone."""
        self._missing = list(self._plans)

    def find(self, plan: Plan) -> bool:
        """Look while a layer runs.

        Returns:
            Whether all of its parameters are whole; parts of a layer that is split over ranks cannot be described.
        """
        # What is gathered together is found together: a layer may use the parameters of one that is never called itself.
        self._missing = [one for one in self._missing if one is not plan and not self._bind(one)]
        return self._bind(plan)

    def _bind(self, plan: Plan) -> bool:
        whole = True
        for name, leaf in plan.leaves.items():
            if not (leaf.sharded and leaf.wanted):
                continue
            found = plan.module._parameters.get(name)
            if found is None or hasattr(found, "to_local"):
                whole = False
            elif found is not leaf.live:
                leaf.live = found
                self._hang(leaf)
        return whole
