"""Whether minibatch gradients are an unbiased estimate of the full gradient, with the variance that theory gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import torch
from torch import Tensor, nn

from gradscope.checks.borrowed import borrowed, can_widen
from gradscope.checks.failures import BiasFailure
from gradscope.checks.layout import Layout
from gradscope.checks.truth import LossFn, gradient
from gradscope.errors import InvalidArgumentError
from gradscope.random_numbers import random_state, set_random_state
from gradscope.reference import sample_count, take

_MOST_SUBSETS = 256


@dataclass(frozen=True, slots=True)
class Bias:
    """A minibatch size at which the estimate is biased, or varies otherwise than it should.

    Attributes:
        size: minibatch size ``M``.
        bias: ``‖mean of the minibatch gradients - G‖ / ‖G‖``.
        ratio: ``⟨mean, G⟩ / ‖G‖²``.
        variance: trace of the minibatch gradients' covariance.
        expected_variance: ``tr Σ/M · (N-M)/(N-1)``.
        exact: whether all minibatches were tried, or a random choice of them.
    """

    size: int
    bias: float
    ratio: float
    variance: float
    expected_variance: float
    exact: bool


def assert_unbiased(
    model: nn.Module, loss_fn: LossFn, dataset: Any, sizes: Sequence[int] | None = None, *, seed: int = 0
) -> None:
    """Require that the mean over minibatches of each size is the full gradient, and that the covariance falls as it should.

    Over all minibatches of ``M`` of ``N`` samples drawn without replacement, the mean of the gradients is the full
    gradient for every ``M``, and their covariance is ``Σ/M · (N-M)/(N-1)``, with ``Σ`` the population covariance of
    single samples' gradients. Up to 256 minibatches of a size are tried exhaustively; of more, 256 at random are judged
    against their own standard error.

    Args:
        model: left as it was; computed in float64 where it can be.
        loss_fn: ``loss_fn(model, batch)``; a mean over samples is unbiased, a sum is not.
        dataset: any nested structure of tensors with the samples along dimension 0.
        sizes: minibatch sizes; by default 1, 2, about a half, and all.
        seed: of the random choice of minibatches.

    Raises:
        BiasFailure: ``.diagnosis`` is a ``Bias``.
        InvalidArgumentError: fewer than two samples, or a size that is not between 1 and ``N``.
    """
    __tracebackhide__ = True
    n = sample_count(dataset)
    chosen = sorted(set(sizes if sizes is not None else (1, min(2, n), max(1, n // 2), n)))
    if n < 2 or not chosen or chosen[0] < 1 or chosen[-1] > n:
        raise InvalidArgumentError(
            f"sizes={chosen} with {n} samples: sizes must lie between 1 and N, and N be at least 2."
        )
    generator = torch.Generator("cpu").manual_seed(seed)
    wide = can_widen(model, dataset, lambda batch: loss_fn(model, batch))
    with borrowed(model, dataset, wide=wide) as ready:
        layout, state = Layout.of(model), random_state()

        def of(rows: Sequence[int]) -> Tensor:
            set_random_state(state)
            return gradient(model, loss_fn, take(ready, rows), layout)

        full = of(range(n))
        singles = torch.stack([of([i]) for i in range(n)])
        population = float((singles - singles.mean(0)).square().sum(1).mean())
        for size in chosen:
            subsets, exact = _subsets(n, size, generator)
            grads = torch.stack([of(rows) for rows in subsets])
            _judge(grads, full, size, population / size * (n - size) / (n - 1), exact, 1e-6 if wide else 1e-2)


def _subsets(n: int, size: int, generator: torch.Generator) -> tuple[list[list[int]], bool]:
    if comb(n, size) <= _MOST_SUBSETS:
        return [list(rows) for rows in combinations(range(n), size)], True
    drawn = [
        torch.randperm(n, generator=generator, device="cpu")[:size].sort().values.tolist() for _ in range(_MOST_SUBSETS)
    ]
    return drawn, False


def _judge(grads: Tensor, full: Tensor, size: int, expected: float, exact: bool, rtol: float) -> None:
    mean, scale = grads.mean(0), float(full.norm()) + (expected**0.5)
    squares = (grads - mean).square().sum(1)
    variance = float(squares.sum()) / (len(grads) if exact else len(grads) - 1)
    allowed, spread = rtol * scale, rtol * (expected + 1e-3 * scale**2)
    if not exact:  # five standard errors: a false alarm in less than one of a million
        allowed += 5 * (variance / len(grads)) ** 0.5
        spread += 5 * float(squares.std()) / len(grads) ** 0.5
    bias = float((mean - full).norm())
    found = Bias(
        size, bias / max(float(full.norm()), 1e-300), float(mean @ full) / max(float(full @ full), 1e-300),
        variance, expected, exact,
    )  # fmt: skip
    if not bias <= allowed:
        raise BiasFailure(
            f"The gradient of minibatches of {size} is a biased estimate of the full gradient: their mean is off by "
            f"{100 * found.bias:.3g} % of its size ({found.ratio:.4g} times it along its own direction).\n\nWhat to change:\n"
            "  The loss must be a mean over samples. A sum grows with the minibatch; a mean over tokens weighs samples\n"
            "  otherwise in each minibatch; BatchNorm in training mode makes samples interact (use eval mode).",
            found,
        )
    if not abs(variance - expected) <= spread:
        raise BiasFailure(
            f"The mean gradient of minibatches of {size} is right, but its variance is {variance:.4g} where "
            f"tr Σ/M·(N-M)/(N-1) = {expected:.4g}.\n\nWhat to change:\n"
            "  Samples are not treated alike and independently: look for noise in the model or the loss (dropout), or for\n"
            "  samples that interact.",
            found,
        )
