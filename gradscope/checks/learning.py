"""Whether every parameter gets a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gradscope.checks.borrowed import borrowed
from gradscope.checks.failures import IdleParameterFailure
from gradscope.checks.layout import Layout
from gradscope.checks.truth import LossFn, gradient
from gradscope.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class IdleParameter:
    """A parameter that does not learn.

    Attributes:
        name: the parameter.
        reason: ``"no gradient"``: it is not connected to the loss; ``"always zero"``: it is, but its gradient is zero.
        called: whether the module that owns it was called.
    """

    name: str
    reason: str
    called: bool


def assert_every_parameter_learns(model: nn.Module, loss_fn: LossFn, batch: Any, *, ignore: Sequence[str] = ()) -> None:
    """Require that every parameter that asks for a gradient gets one, and one that is not always zero.

    Args:
        model: left as it was.
        loss_fn: ``loss_fn(model, batch)``, a scalar.
        batch: any nested structure of tensors; large enough that every part of the model is used.
        ignore: names of parameters, or prefixes of names, that need not learn.

    Raises:
        IdleParameterFailure: ``.diagnosis`` is a tuple of ``IdleParameter``.
        InvalidArgumentError: no parameter requires a gradient, or a name in ``ignore`` does not exist.
    """
    __tracebackhide__ = True
    for prefix in ignore:
        if not any(_under(name, prefix) for name, _ in model.named_parameters()):
            raise InvalidArgumentError(f"ignore={list(ignore)!r}: {prefix!r} is no parameter or module of the model.")
    with borrowed(model, batch, wide=False):
        layout, called, connected = Layout.of(model), set[int](), set[int]()
        handles: list[Any] = [m.register_forward_hook(lambda m, a, o: called.add(id(m))) for m in model.modules()]
        handles += [p.register_hook(lambda g, i=i: connected.add(i)) for i, p in enumerate(layout.parameters)]
        try:
            grad = gradient(model, loss_fn, batch, layout)
        finally:
            for handle in handles:
                handle.remove()
    owners = dict(_owners(model))
    idle = [
        IdleParameter(name, "always zero" if i in connected else "no gradient", id(owners[name]) in called)
        for i, (name, place) in enumerate(zip(layout.names, layout.slices, strict=True))
        if not bool(grad[place].any()) and not any(_under(name, prefix) for prefix in ignore)
    ]
    if idle:
        raise IdleParameterFailure(_message(idle, len(layout.names)), tuple(idle))


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _owners(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (f"{prefix}.{name}" if prefix else name, module)
        for prefix, module in model.named_modules()
        for name, p in module._parameters.items()
        if isinstance(p, Tensor)
    ]


def _message(idle: list[IdleParameter], count: int) -> str:
    width = max(len(p.name) for p in idle)
    lines = [f"{len(idle)} of {count} parameters do not learn:", ""]
    for p in idle:
        if p.reason == "always zero":
            why = "its gradient is zero for this batch: dead activations, a zero factor, or nothing of it was used"
        elif p.called:
            why = "its layer ran, but no gradient comes back: a detach(), no_grad(), argmax or an unused output"
        else:
            why = "its layer was never called"
        lines.append(f"  {p.name:<{width}}  {why}")
    lines += [
        "",
        "What to change:",
        "  Connect them to the loss, freeze them (requires_grad_(False)), or pass ignore=[...].",
    ]
    return "\n".join(lines)
