"""Whether a sample's output depends on that sample alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from gradscope.checks.borrowed import borrowed, can_widen
from gradscope.checks.failures import LeakageFailure
from gradscope.errors import InvalidArgumentError
from gradscope.random_numbers import random_state, set_random_state
from gradscope.reference import sample_count

_SAMPLES_TRIED = 8


@dataclass(frozen=True, slots=True)
class Leakage:
    """Where samples mix.

    Attributes:
        module: qualified name of the first module whose output mixes samples; ``""`` is the model itself.
        kind: its type.
        training: whether it is in training mode.
        sample: a sample whose output changed though only others were replaced.
        change: relative change of that output.
    """

    module: str
    kind: str
    training: bool
    sample: int
    change: float


def assert_no_leakage(model: nn.Module, batch: Any) -> None:
    """Require that output ``i`` of the model depends on sample ``i`` alone.

    For some samples ``i``, every other sample is replaced by a copy of ``i``, under the same random state: row ``i`` of
    what each module returns must stay as it is.

    Args:
        model: in the mode to be checked; left as it was.
        batch: what the model is called with: a tensor, a tuple or list of positional arguments, or a dict of keyword
            arguments; dimension 0 is the sample.

    Raises:
        LeakageFailure: an output depends on other samples; names the first module that mixes, ``.diagnosis`` is a ``Leakage``.
        InvalidArgumentError: fewer than two samples, or an output without one row per sample.
    """
    __tracebackhide__ = True
    n = sample_count(batch)
    if n < 2:
        raise InvalidArgumentError("A batch of one sample cannot show whether samples mix: give at least two.")

    def run(batch: Any) -> Any:
        with torch.no_grad():
            return _call(model, batch)

    wide = can_widen(model, batch, run)
    with borrowed(model, batch, wide=wide) as ready:
        state = random_state()
        base = _rows(model, ready, n, run, state)
        _require_rows(model, base, n)
        for i in range(0, n, max(1, n // _SAMPLES_TRIED)):
            replaced = tree.tree_map(lambda t, i=i: t[[i] * n] if isinstance(t, Tensor) and t.dim() else t, ready)
            found = _first_change(model, base, _rows(model, replaced, n, run, state), i, wide)
            if found is not None:
                raise LeakageFailure(_message(model, found), found)


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


@dataclass(slots=True, eq=False)
class _Record:
    name: str
    module: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]


def _rows(model: nn.Module, batch: Any, n: int, run: Callable[[Any], Any], state: Sequence[Tensor]) -> list[_Record]:
    """Inputs and outputs of every module's calls, in the order in which they returned."""
    records: list[_Record] = []
    handles = []
    for name, module in model.named_modules():

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            records.append(_Record(name, module, _tensors((args, kwargs)), _tensors(output)))

        handles.append(module.register_forward_hook(keep, with_kwargs=True))
    set_random_state(state)
    try:
        run(batch)
    finally:
        for handle in handles:
            handle.remove()
    return records


def _tensors(nested: Any) -> list[Tensor]:
    return [t.detach().clone() for t in tree.tree_leaves(nested) if isinstance(t, Tensor) and t.is_floating_point()]


def _require_rows(model: nn.Module, records: list[_Record], n: int) -> None:
    outputs = records[-1].outputs
    if not outputs or any(t.dim() == 0 or t.shape[0] != n for t in outputs):
        shapes = ", ".join(str(tuple(t.shape)) for t in outputs) or "none"
        raise InvalidArgumentError(
            f"{type(model).__name__} must return tensors with one row per sample ({n}); their shapes are {shapes}. Wrap a "
            "model that returns a loss, or has the samples in another dimension."
        )


def _first_change(model: nn.Module, base: list[_Record], other: list[_Record], i: int, wide: bool) -> Leakage | None:
    n = base[-1].outputs[0].shape[0]
    if not any(_change(a, b, i, n) > _allowed(a, wide) for a, b in _pairs(base[-1].outputs, other[-1].outputs)):
        return None
    for was, now in zip(base, other, strict=False):
        inputs = [_change(a, b, i, n) <= _allowed(a, wide) for a, b in _pairs(was.inputs, now.inputs)]
        changes = [_change(a, b, i, n) for a, b in _pairs(was.outputs, now.outputs)]
        mixes = any(c > _allowed(a, wide) for c, a in zip(changes, was.outputs, strict=False))
        if mixes and all(inputs):
            return Leakage(was.name, type(was.module).__name__, was.module.training, i, max(changes))
    worst = max(_change(a, b, i, n) for a, b in _pairs(base[-1].outputs, other[-1].outputs))
    return Leakage("", type(model).__name__, model.training, i, worst)


def _pairs(a: list[Tensor], b: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(x, y) for x, y in zip(a, b, strict=False) if x.shape == y.shape]


def _change(was: Tensor, now: Tensor, i: int, n: int) -> float:
    """Relative change of sample ``i``'s rows; 0 where the rows of a tensor do not belong to samples."""
    if was.dim() == 0 or was.shape[0] % n:
        return 0.0
    per = was.shape[0] // n
    a, b = (rows[i * per : (i + 1) * per].cpu().double() for rows in (was, now))
    size = max(float(a.norm()), float(b.norm()))
    difference = float((a - b).norm())
    return difference / size if size > 0 and difference == difference else 0.0


def _allowed(tensor: Tensor, wide: bool) -> float:
    return 1e-9 if wide else 64 * torch.finfo(tensor.dtype).eps


def _message(model: nn.Module, found: Leakage) -> str:
    where = f"{found.module!r} ({found.kind})" if found.module else f"the forward of {found.kind} itself"
    mode = "training" if found.training else "eval"
    lines = [
        f"Samples leak into each other: output {found.sample} of {type(model).__name__} changed by "
        f"{100 * found.change:.3g} % when only the other samples of the batch were replaced.",
        "",
        f"First module that mixes samples: {where}, in {mode} mode.",
        "",
        "What to change:",
    ]
    if "BatchNorm" in found.kind:
        lines.append(
            "  BatchNorm in training mode uses the batch's own statistics: call model.eval(), or use GroupNorm."
        )
    else:
        lines.append(
            "  Look there for a mean, softmax, sort, reshape or roll over dimension 0, or for a swapped batch_first."
        )
    return "\n".join(lines)
