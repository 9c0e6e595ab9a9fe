"""How each parameter was measured, or why it was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Status = Literal["exact", "estimated", "second pass", "not measured", "mismatch", "no gradient", "frozen"]

#: From the most to the least that can be said; within a window a parameter has the worst status of its micro-steps.
STATUSES: tuple[Status, ...] = (
    "exact", "second pass", "estimated", "frozen", "no gradient", "not measured", "mismatch"
)  # fmt: skip

#: Why the other parameters have no figures where the user asked for the prediction from normalisation layers.
NORMALIZATION_ONLY = "only normalisation layers were asked for"


@dataclass(frozen=True, slots=True)
class Coverage:
    """How one parameter's figures were made.

    Attributes:
        status: one of ``STATUSES``. "exact": closed form, or recomputation of the owning module alone; "estimated": random
            signs, or how micro-steps or ranks differ; "second pass": recomputation of anything above the owner; "not
            measured", "mismatch": withheld, see ``reason``; "no gradient": nothing reached it in this window; "frozen": it asks
            for no gradient.
        rule: what described the contributions, for example ``"linear"`` or ``"random signs"``; empty where none did.
        reason: why there is no better status, in words a user can act on; empty where there is nothing to add.
        error: relative difference between the captured contributions and what autograd gave the parameter; NaN where no
            check could be made.
    """

    status: Status
    rule: str = ""
    reason: str = ""
    error: float = float("nan")

    @property
    def measured(self) -> bool:
        """Whether this parameter has figures."""
        return self.status in ("exact", "estimated", "second pass")


def of_normalization_only(coverage: Mapping[str, Coverage]) -> bool:
    """Whether normalisation layers alone were measured, so that figures of the whole model are predicted from theirs."""
    return any(one.reason == NORMALIZATION_ONLY for one in coverage.values())
