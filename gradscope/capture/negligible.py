"""Uses that add nothing but rounding: their rows fit no sample, and whose they are does not matter."""

from __future__ import annotations

from collections.abc import Mapping

from gradscope.capture.forward import Forward
from gradscope.contributions import Contribution
from gradscope.moments.leaf import Leaf

#: Largest part of a parameter's signed sum that is taken for rounding (the first step of a recurrence, say).
NEGLIGIBLE = 1e-5


def negligible_below(
    forward: Forward, leaves: Mapping[str, Leaf], described: Mapping[str, Contribution]
) -> float | None:
    """The squared norm below which a use does not matter, where this one lies below it for all parameters; else None.

    Args:
        forward: the model's call, whose inner backward has shown how large the whole is.
        leaves: the parameters that the use is part of.
        described: what it adds to each, under some layout.
    """
    limits: list[float] = []
    for name, leaf in leaves.items():
        signed = forward.signed_sum(leaf)
        if signed is None or name not in described:
            return None
        limits.append(NEGLIGIBLE**2 * float(signed))
        if not float(described[name].squared_norms().sum()) <= limits[-1]:
            return None
    return min(limits, default=None)


def largest(described: Mapping[str, Contribution]) -> float:
    """The largest squared norm of what a use adds, over its parameters."""
    return max((float(contribution.squared_norms().sum()) for contribution in described.values()), default=0.0)
