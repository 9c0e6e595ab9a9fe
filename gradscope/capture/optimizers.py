"""Optimizers: whose parameters they step, when they have stepped, and what they know."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer

from gradscope.capture.hook import Hook
from gradscope.errors import ForeignOptimizerError, InvalidArgumentError
from gradscope.moments.leaf import Leaf
from gradscope.window_sums import AdamState


def check_optimizers(optimizers: Sequence[Any], leaves: Sequence[Leaf]) -> None:
    """Refuse optimizers whose steps could not close a window of this model.

    Raises:
        InvalidArgumentError: something else was passed.
        ForeignOptimizerError: an optimizer owns none of the model's parameters.
    """
    ours = {id(leaf.parameter) for leaf in leaves}
    for optimizer in optimizers:
        inner = unwrapped_optimizer(optimizer)
        if not isinstance(inner, Optimizer):
            raise InvalidArgumentError(
                f"watch: expected a torch.optim.Optimizer after the model, got {type(optimizer).__name__}."
            )
        if not any(id(parameter) in ours for parameter in _parameters(inner)):
            raise ForeignOptimizerError(
                f"{type(inner).__name__} steps none of the watched model's parameters, so its steps would close no window. "
                "Pass the optimizer that was made from this model's parameters()."
            )


def unwrapped_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside a wrapper that keeps it as ``.optimizer`` (accelerate's, say)."""
    inner = getattr(optimizer, "optimizer", None)
    # accelerate's is an Optimizer by name that was never initialised as one: it has no hooks.
    whole = isinstance(optimizer, Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks")
    return inner if isinstance(inner, Optimizer) and not whole else optimizer


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class StepWatch:
    """Hooks on the optimizers' steps.

    Args:
        optimizers: one or several.
        before: called before each real step, when parameters are about to change.
        after: called with the optimizer after each real step.
        owner: the scope's recorder.
    """

    def __init__(
        self, optimizers: Sequence[Any], before: Callable[[], None], after: Callable[[Optimizer], None], owner: object
    ) -> None:
        self.optimizers = [unwrapped_optimizer(optimizer) for optimizer in optimizers]
        self._handles: list[Any] = []
        for optimizer in self.optimizers:
            pre = Hook(lambda *args: before(), owner)
            post = Hook(lambda stepped, *args: after(stepped), owner)
            self._handles.append(optimizer.register_step_pre_hook(pre))
            self._handles.append(optimizer.register_step_post_hook(post))

    def owners(self, leaves: Sequence[Leaf]) -> dict[int, int]:
        """For each parameter index, which optimizer steps it."""
        owner = {id(p): k for k, optimizer in enumerate(self.optimizers) for p in _parameters(optimizer)}
        return {leaf.index: owner[id(leaf.parameter)] for leaf in leaves if id(leaf.parameter) in owner}

    def adam(self, leaves: Sequence[Leaf]) -> dict[int, AdamState]:
        """What Adam-like optimizers know of each parameter."""
        found: dict[int, AdamState] = {}
        if not any("betas" in group for optimizer in self.optimizers for group in optimizer.param_groups):
            return found
        groups = {id(p): (o, g) for o in self.optimizers for g in o.param_groups for p in g["params"]}
        for leaf in leaves:
            optimizer, group = groups.get(id(leaf.parameter), (None, None))
            state = optimizer.state.get(leaf.parameter) if optimizer is not None else None
            if state and group and "exp_avg_sq" in state and "betas" in group and "step" in state:
                found[leaf.index] = AdamState(
                    state["exp_avg_sq"], float(state["step"]), float(group["betas"][1]), float(group.get("eps", 0.0))
                )
        return found

    def without(self, newer: Optimizer) -> list[Any]:
        """Those of the optimizers that step something which ``newer`` does not: the others were replaced by it."""
        taken = {id(parameter) for parameter in _parameters(newer)}
        return [old for old in self.optimizers if any(id(parameter) not in taken for parameter in _parameters(old))]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def scaler_on_the_stack() -> Any:
    """The GradScaler that is stepping the optimizer right now, if one is; it is found among the callers.

    Only a frame of its own code is read: reading another frame's locals would keep them alive.
    """
    code = _scaler_source()
    frame: FrameType | None = sys._getframe(1)
    for _ in range(24):
        if frame is None:
            break
        if frame.f_code.co_filename == code:
            found = frame.f_locals.get("self")
            if isinstance(found, torch.amp.GradScaler):
                return found
        frame = frame.f_back
    return None


@lru_cache
def _scaler_source() -> str | None:
    return inspect.getsourcefile(torch.amp.GradScaler)


def scale_of(scaler: Any) -> float:
    """What the loss was multiplied with."""
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0
