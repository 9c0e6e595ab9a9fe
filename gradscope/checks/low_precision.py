"""Whether the dtype of ``.grad`` lost part of what was added to it."""

from __future__ import annotations

import torch

from gradscope.checks.trace import Backward, WindowTrace

#: Relative loss that counts. Measured for bfloat16: 0.2 % at 4 additions, 0.7 to 1 % at 64, 2 to 16 % at 512.
LOSS = 0.015


def low_precision(trace: WindowTrace) -> str | None:
    """What was lost, in words, or None: ``.grad`` against the float64 sum of its own increments."""
    used = trace.backwards[: trace.closed_at]
    if not used:
        return None
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in trace.layout.parameters})
    kinds = ", ".join(dtypes)
    places = trace.layout.places(trace.owned)
    if not bool(torch.stack([b.increment[places].isfinite().all() for b in used]).all()):
        return f"a gradient overflowed in {kinds}; in float64 the same step is right."
    if trace.inner_writes() or any(_not_added(b) for b in used):
        return None
    total = torch.stack([b.increment for b in used]).sum(0)[places]
    if not bool(total.any()):
        return f"every gradient is zero in {kinds}, where in float64 it is not: it is too small for the dtype."
    lost = float((used[-1].after[places] - trace.leftover[places] - total).norm()) / float(total.norm())
    if not lost <= LOSS:
        return (
            f".grad, kept in {kinds}, is {100 * lost:.2g} % off the exact sum of the {len(used)} gradients that were added "
            "to it; in float64 the same step is right."
        )
    return None


def _not_added(backward: Backward) -> bool:
    """Whether nothing was added although there was much to add: ``autograd.grad`` leaves ``.grad`` alone."""
    same = torch.equal(backward.before, backward.after)
    return same and float(backward.increment.norm()) > 0.1 * float(backward.before.norm())
