"""Whether autograd's gradient is the derivative of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.checks.borrowed import borrowed
from gradscope.checks.failures import GradientFailure
from gradscope.checks.functions import custom_functions
from gradscope.checks.layout import Layout
from gradscope.checks.truth import LossFn, gradient
from gradscope.errors import InvalidArgumentError
from gradscope.random_numbers import random_state, set_random_state
from gradscope.wide import knows_float64

_STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


@dataclass(frozen=True, slots=True)
class WrongGradient:
    """A parameter whose gradient is not the derivative of the loss.

    Attributes:
        name: the parameter.
        autograd: derivative along a random direction, by autograd.
        numeric: the same by finite differences in float64.
        functions: custom ``autograd.Function`` classes that fit: every wrong parameter lies behind them.
    """

    name: str
    autograd: float
    numeric: float
    functions: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Autograd's over the numeric derivative; infinite where the latter is zero."""
        return self.autograd / self.numeric if self.numeric else float("inf")


def assert_gradients(
    model: nn.Module, loss_fn: LossFn, batch: Any, *, directions: int = 2, rtol: float = 1e-4, seed: int = 0
) -> None:
    """Require that autograd's gradient agrees with finite differences in float64, parameter by parameter.

    Along random directions ``v`` of each parameter, ``⟨∇L, v⟩`` against central differences ``(L(p+hv) - L(p-hv))/2h``
    for falling ``h``. At a kink (ReLU at zero) the two one-sided slopes differ; whatever lies between them is right.

    Args:
        model: left as it was; computed in float64, from one random state.
        loss_fn: ``loss_fn(model, batch)``, a scalar.
        batch: any nested structure of tensors.
        directions: random directions per parameter.
        rtol: relative error that passes.
        seed: of the directions; the global random state is not used.

    Raises:
        GradientFailure: a derivative is wrong; ``.diagnosis`` is a tuple of ``WrongGradient``.
        InvalidArgumentError: no parameter requires a gradient, the loss is no scalar, or the device knows no float64.
    """
    __tracebackhide__ = True
    narrow = {str(p.device) for p in model.parameters() if not knows_float64(p.device)}
    if narrow:
        raise InvalidArgumentError(
            f"assert_gradients: finite differences need float64, and {', '.join(sorted(narrow))} knows none. Move the model "
            "and the batch to the CPU for this check; assert_per_sample and assert_accumulates run where they are."
        )
    generator = torch.Generator("cpu").manual_seed(seed)
    with borrowed(model, batch) as ready:
        layout, state = Layout.of(model), random_state()

        def loss() -> float:
            set_random_state(state)
            with torch.no_grad():
                return float(loss_fn(model, ready))

        set_random_state(state)
        grad = gradient(model, loss_fn, ready, layout)
        wrong = []
        for i, (name, place) in enumerate(zip(layout.names, layout.slices, strict=True)):
            for _ in range(directions):
                v = torch.randn(place.stop - place.start, generator=generator, dtype=torch.float64, device="cpu")
                expected = float(grad[place] @ v)
                slope = _disagreement(loss, layout.parameters[i], v, expected, float(grad[place].norm()), rtol)
                if slope is not None:
                    wrong.append((name, expected, slope))
                    break
        set_random_state(state)
        functions = custom_functions(loss_fn(model, ready), layout, [name for name, _, _ in wrong]) if wrong else ()
    if wrong:
        found = tuple(WrongGradient(name, a, b, functions) for name, a, b in wrong)
        raise GradientFailure(_message(found, layout.names), found)


def _disagreement(
    loss: Callable[[], float], parameter: nn.Parameter, v: Tensor, expected: float, size: float, rtol: float
) -> float | None:
    """The numeric slope where it contradicts the expected one at every step width; None where one agrees."""
    direction = (torch.view_as_complex(v.reshape(-1, 2)) if parameter.is_complex() else v).reshape(parameter.shape)
    scale = max(float(parameter.detach().abs().square().mean()) ** 0.5, 1e-3)
    value, middle = parameter.detach().clone(), loss()
    slopes: list[float] = []
    for relative in _STEPS:
        h = relative * scale
        ahead, behind = (_at(loss, parameter, value + sign * h * direction.to(value.device)) for sign in (1, -1))
        _put(parameter, value)
        right, left, central = (ahead - middle) / h, (middle - behind) / h, (ahead - behind) / (2 * h)
        noise = 64 * 2.0**-53 * max(abs(ahead), abs(behind), abs(middle)) / h
        allowed = rtol * max(size, abs(central)) + noise
        if abs(central - expected) <= allowed:
            return None
        if abs(right - left) > allowed:  # a kink, or curvature that a smaller step will not show
            between = min(left, right) - allowed <= expected <= max(left, right) + allowed
            if between and relative == _STEPS[-1]:
                return None
        slopes.append(central)
    # The step with the clearest reading: small enough for curvature, large enough for rounding.
    return slopes[2]


def _at(loss: Callable[[], float], parameter: nn.Parameter, value: Tensor) -> float:
    _put(parameter, value)
    return loss()


def _put(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)


def _message(wrong: Sequence[WrongGradient], names: Sequence[str]) -> str:
    width = max(len("parameter"), *(len(w.name) for w in wrong))
    lines = [
        f"{len(wrong)} of {len(names)} parameters have a gradient that is not the derivative of the loss.",
        "",
        f"  {'parameter':<{width}}  {'autograd':>11}  {'numeric':>11}  {'ratio':>8}   (along a random direction, float64)",
        *(f"  {w.name:<{width}}  {w.autograd:>11.4g}  {w.numeric:>11.4g}  {w.ratio:>8.4g}" for w in wrong),
        "",
    ]
    functions = wrong[0].functions
    if functions:
        lines.append(f"Every wrong parameter lies behind the custom autograd function {' or '.join(functions)}.")
        lines += [
            "",
            "What to change:",
            f"  Compare the backward of {functions[0]} with the derivative of its forward.",
        ]
    else:
        lines += [
            "What to change:",
            "  Look for a detach(), a .data, a torch.no_grad(), or a gradient hook between these parameters and the loss.",
        ]
    return "\n".join(lines)
