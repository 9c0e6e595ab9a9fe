"""What samples weigh in a loss over tokens, read from the loss itself."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

from gradscope.capture.hook import Hook
from gradscope.scope import Scope

#: The label of a token that is no part of the loss.
IGNORED = -100

#: Weight of a sample without a token in the loss, beside counts of tokens: weights are positive, and this one changes nothing.
_NONE = 1e-9

NOT_TOKENS = (
    "samples weigh the same here, though the labels count tokens: the loss that the model returned is no mean over the tokens "
    "of its labels. Say what samples weigh, where you know it: scope.annotate(weights=...)"
)


class Divisor(Enum):
    """What the sum of the tokens' losses was divided by."""

    WINDOW = "the tokens of the window"
    MICRO_STEP = "the tokens of the micro-step"


class TokenWeights:
    """Hooks on a model that is given ``labels`` per token and returns ``loss`` and ``logits``.

    A sample's share of a token mean is its number of tokens; under ``num_items_in_batch`` that of the whole window. Which it is,
    and whether labels are shifted, is found out once, by computing the loss from the logits: where nothing fits (an auxiliary
    loss, label smoothing, another loss), samples keep equal weights, and the report says so.

    Args:
        model: the watched model.
        scope: where weights go.
    """

    def __init__(self, model: Module, scope: Scope) -> None:
        self._scope = scope
        self._form: tuple[Divisor, bool] | None = None
        self._asked = False
        hook = Hook(self._shielded, scope._session.recorder)
        self._handle = model.register_forward_hook(hook, with_kwargs=True)

    def close(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def _shielded(self, model: Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        self._scope._session._safely(lambda: self._after(kwargs, output))

    def _after(self, kwargs: Mapping[str, Any], output: Any) -> None:
        labels, loss = kwargs.get("labels"), _field(output, "loss")
        attached = self._scope._session.recorder.attached
        in_backward = torch._C._current_graph_task_id() != -1
        if not isinstance(labels, Tensor) or labels.dim() != 2 or loss is None or not loss.requires_grad:
            return
        if not attached or in_backward:
            return
        if not self._asked:
            self._asked = True
            self._form = form_of(loss, _field(output, "logits"), labels, kwargs.get("num_items_in_batch"))
            if self._form is None:
                self._scope._session.history.warn(NOT_TOKENS)
        if self._form is not None:
            self._scope.annotate(weights=token_weights(labels, *self._form))


def token_weights(labels: Tensor, divisor: Divisor, shifted: bool) -> Tensor:
    """``uᵢ``: the tokens of sample i in the loss, over those of the micro-step where that is what they were divided by.

    Args:
        labels: ``[n, T]``; ``IGNORED`` where a token is no part of the loss.
        divisor: what the sum of the tokens' losses was divided by.
        shifted: whether the first token of each sample is predicted by nothing.

    Returns:
        Weights, float64 ``[n]``, positive.
    """
    counts = _counted(labels, shifted).ne(IGNORED).sum(1).double()
    scale = counts.sum().clamp(min=1) if divisor is Divisor.MICRO_STEP else 1.0
    return counts.clamp(min=_NONE) / scale


@torch.no_grad()
def form_of(loss: Tensor, logits: Any, labels: Tensor, items: Any) -> tuple[Divisor, bool] | None:
    """How a loss comes from the tokens' cross-entropies: what divides their sum, and whether labels are shifted.

    Args:
        loss: what the model returned, zero-dimensional.
        logits: ``[n, T, V]``.
        labels: ``[n, T]``.
        items: tokens of the window, if the model was told.

    Returns:
        None where it does not come from them.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != labels.shape or loss.dim() != 0:
        return None
    half = torch.is_autocast_enabled(logits.device.type) or logits.dtype in (torch.float16, torch.bfloat16)
    tolerance = 2e-2 if half else 1e-3
    for shifted in (True, False):
        targets = _counted(labels, shifted)
        total = float(sum(_sum(row, target, shifted) for row, target in zip(logits, targets, strict=True)))
        divisors = {Divisor.MICRO_STEP: float(targets.ne(IGNORED).sum())}
        if items is not None:
            divisors = {Divisor.WINDOW: float(items), **divisors}
        for divisor, tokens in divisors.items():
            if abs(float(loss) * tokens - total) <= tolerance * abs(total):
                return divisor, shifted
    return None


def _sum(logits: Tensor, targets: Tensor, shifted: bool) -> Tensor:
    """Cross-entropies of one sample, summed: of one at a time, since ``[n, T, V]`` in full precision may not fit."""
    with torch.autocast(logits.device.type, enabled=False):
        kept = logits[:-1] if shifted else logits
        return cross_entropy(kept.float(), targets, ignore_index=IGNORED, reduction="sum")


def _counted(labels: Tensor, shifted: bool) -> Tensor:
    return labels[:, 1:] if shifted else labels


def _field(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
