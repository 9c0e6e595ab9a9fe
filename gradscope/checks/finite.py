"""Whether every gradient is a finite number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from gradscope.checks.borrowed import borrowed
from gradscope.checks.failures import NonFiniteFailure
from gradscope.checks.layout import Layout
from gradscope.checks.truth import LossFn, gradient
from gradscope.reference import sample_count, take


@dataclass(frozen=True, slots=True)
class NonFinite:
    """What is not finite.

    Attributes:
        loss: the loss of the batch.
        parameters: those whose gradient is not finite.
        samples: indices of samples that alone give a loss or gradient that is not finite.
        module: first module whose output is not finite, or None.
        kind: its type, or None.
    """

    loss: float
    parameters: tuple[str, ...]
    samples: tuple[int, ...]
    module: str | None
    kind: str | None


def assert_finite(model: nn.Module, loss_fn: LossFn, batch: Any) -> None:
    """Require that the loss and every gradient are finite, in the dtype that the model has.

    Raises:
        NonFiniteFailure: names the parameters, the samples and the first module; ``.diagnosis`` is a ``NonFinite``.
        InvalidArgumentError: no parameter requires a gradient, or the loss is no scalar.
    """
    __tracebackhide__ = True
    with borrowed(model, batch, wide=False):
        layout, modules = Layout.of(model), _FirstNonFinite(model)
        loss = torch.tensor(float("nan"), device="cpu")

        def noted(model: Any, batch: Any) -> Tensor:
            nonlocal loss
            loss = loss_fn(model, batch)
            return loss

        with modules:
            grad = gradient(model, noted, batch, layout)
        names = tuple(n for n, s in zip(layout.names, layout.slices, strict=True) if not bool(grad[s].isfinite().all()))
        if bool(loss.isfinite()) and not names:
            return
        samples = tuple(i for i in range(sample_count(batch)) if _is_bad(model, loss_fn, take(batch, [i]), layout))
    found = NonFinite(float(loss.detach()), names, samples, modules.name, modules.kind)
    raise NonFiniteFailure(_message(found, len(layout.names)), found)


def _is_bad(model: nn.Module, loss_fn: LossFn, batch: Any, layout: Layout) -> bool:
    try:
        return not bool(gradient(model, loss_fn, batch, layout).isfinite().all())
    except (RuntimeError, ValueError):  # a single sample may be refused (BatchNorm): then it cannot be told
        return False


class _FirstNonFinite:
    """Hooks that note the first module whose output is not finite."""

    def __init__(self, model: nn.Module) -> None:
        self.name: str | None = None
        self.kind: str | None = None
        self._model, self._handles = model, list[Any]()

    def __enter__(self) -> None:
        for name, module in self._model.named_modules():

            def look(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                floats = [t for t in tree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
                if self.kind is None and not all(bool(t.isfinite().all()) for t in floats):
                    self.name, self.kind = name, type(module).__name__

            self._handles.append(module.register_forward_hook(look))

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def _message(found: NonFinite, count: int) -> str:
    lines = [
        f"The loss is {found.loss:g}, and {len(found.parameters)} of {count} parameters have a gradient that is not finite."
    ]
    if found.parameters:
        more = f" and {len(found.parameters) - 8} more" if len(found.parameters) > 8 else ""
        lines.append(f"  parameters: {', '.join(found.parameters[:8])}{more}")
    if found.samples:
        lines.append(f"  samples that alone give it: {', '.join(map(str, found.samples[:16]))}")
    if found.kind is not None:
        lines.append(f"  first module with such an output: {found.module or 'the model itself'} ({found.kind})")
    lines += ["", "What to change:"]
    if found.samples and found.kind is None:
        lines.append("  The forward is finite, the backward is not: look for sqrt, norm, log or a division at zero.")
    elif found.samples:
        lines.append("  Look at these samples' inputs first, then for overflow, log or division in the module named.")
    else:
        lines.append(
            "  No sample alone gives it: look for an overflow of the sum, or a division by the batch's spread."
        )
    return "\n".join(lines)
