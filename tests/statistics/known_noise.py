"""Per-sample gradients whose ``tr Σ`` and ``|G|²`` are known, drawn for many runs at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.coverage import Coverage
from gradscope.window import ParameterInfo, ParameterSums, Window

Noise = Callable[[tuple[int, ...]], Tensor]
ELEMENTS = 20


def gaussian(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def laplace(shape: tuple[int, ...]) -> Tensor:
    u = torch.rand(shape, dtype=torch.float64) - 0.5
    return -u.sign() * torch.log1p(-2 * u.abs()) / 2**0.5


def student_t5(shape: tuple[int, ...]) -> Tensor:
    # Chi-squared with 5 degrees of freedom: two exponentials and the square of a normal.
    pairs = -2 * (torch.rand(shape, dtype=torch.float64) * torch.rand(shape, dtype=torch.float64)).log()
    return gaussian(shape) * (3 / (pairs + gaussian(shape).square())).sqrt()


def lognormal_rows(shape: tuple[int, ...]) -> Tensor:
    scale = torch.exp(gaussian((*shape[:-1], 1)) - 1)  # mean square 1
    return gaussian(shape) * scale


@dataclass(frozen=True)
class Runs:
    """Sums of many runs, ``[T, R]``: the parts of them that do not depend on the signal.

    Each element has variance 1; the signal is a constant added to every element.
    """

    samples: int
    own: Tensor
    mean: Tensor
    mean_sq: Tensor

    def sums(self, shift: Tensor | float) -> tuple[Tensor, Tensor]:
        """``‖ḡ‖²`` and ``Σ‖hᵢ‖²`` with ``shift`` added to every element of every gradient."""
        added = 2 * shift * self.mean + ELEMENTS * shift**2
        return self.mean_sq + added, (self.own + added) / self.samples


def runs(noise: Noise, count: int, windows: int = 20, samples: int = 32) -> Runs:
    """``own`` is the mean ``‖gᵢ‖²``, ``mean`` the summed elements of ``ḡ``, ``mean_sq`` its squared norm."""
    rows = []
    for _ in range(windows):
        g = noise((count, samples, ELEMENTS))
        mean = g.mean(1)
        rows.append((g.square().sum(2).mean(1), mean.sum(1), mean.square().sum(1)))
    return Runs(samples, *(torch.stack(column) for column in zip(*rows, strict=True)))


def windows_of(
    samples: int, grad_sq_norm: Tensor, contribution_sq_sum: Tensor
) -> tuple[list[ParameterInfo], list[Window]]:
    """``[T, R]`` sums as windows of a model that has one layer, of one parameter, per run."""
    count = grad_sq_norm.shape[1]
    infos = [ParameterInfo(f"run{r}.weight", f"run{r}", ELEMENTS, (ELEMENTS,)) for r in range(count)]
    coverage = {info.name: Coverage("exact", "linear") for info in infos}
    found = []
    for t, (first, second) in enumerate(zip(grad_sq_norm.tolist(), contribution_sq_sum.tolist(), strict=True)):
        names = {info.name: ParameterSums(a, b) for info, a, b in zip(infos, first, second, strict=True)}
        found.append(Window(t + 1, samples, 1, 1 / samples, names, coverage))
    return infos, found
