"""What is asked of all parameters at each micro-step, without a loop of ours: its body would take most of the time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import attrgetter, eq, is_, length_hint

from torch import Tensor

from gradscope.contributions import Probe
from gradscope.moments.leaf import Leaf

_LIVE, _PARAMETER, _PROBE = attrgetter("live"), attrgetter("parameter"), attrgetter("probe")
_WATCHED, _PROMPT, _BASELINE, _HOOKED = (attrgetter(name) for name in ("watched", "prompt", "baseline", "hooked"))
_REQUIRES_GRAD, _GRAD = attrgetter("requires_grad"), attrgetter("grad")
_BEFORE, _AFTER = attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks")


def all_none(values: Iterable[object]) -> bool:
    """Whether each is None."""
    return all(map(is_, values, repeat(None)))


def all_watched(leaves: Sequence[Leaf]) -> bool:
    """Whether hooks of ours hang on each."""
    return all(map(_WATCHED, leaves))


def all_begin(leaves: Sequence[Leaf]) -> bool:
    """Whether each is watched, asks for a gradient, has none yet, and no hook but ours for what comes after it was added."""
    lives: list[Tensor] = list(map(_LIVE, leaves))
    return (
        all_watched(leaves)
        and not any(map(_PROMPT, leaves))
        and all(map(_REQUIRES_GRAD, lives))
        and all_none(map(_GRAD, lives))
        and not any(map(_BEFORE, lives))
        and all(map(eq, map(length_hint, map(_AFTER, lives)), repeat(1)))
    )


def all_grads(leaves: Sequence[Leaf]) -> tuple[list[Tensor], list[Probe]] | None:
    """Each one's ``.grad`` and directions, where all have both and nothing else is to be heeded."""
    grads, probes = list(map(_GRAD, map(_PARAMETER, leaves))), list(map(_PROBE, leaves))
    plain = all_none(map(_BASELINE, leaves)) and not any(map(_HOOKED, leaves))
    # Neither is compared: that would ask a tensor.
    return (grads, probes) if plain and not any(map(is_, (*grads, *probes), repeat(None))) else None
