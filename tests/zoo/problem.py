"""What a problem of the zoo is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as tree

#: Samples of every problem.
N = 6


def wave(output: Tensor) -> Tensor:
    """A loss that no layer is blind to: elementwise sines of different frequency, summed.

    Their slopes are high, so that samples differ: a variance that is a small difference of large terms keeps few digits.
    """
    if output.is_complex():
        return wave(torch.view_as_real(output).flatten(-2))
    shape = output.shape[1:] if output.dim() > 1 else output.shape
    slopes = 6 + torch.arange(shape.numel(), dtype=output.dtype).remainder(3).reshape(shape) / 2
    return (output * slopes + 0.7).sin().sum()


def _total(model: Module, batch: Any) -> Tensor:
    return wave(model(*batch))


def _count(batch: Any) -> float:
    return float(N)


@dataclass(frozen=True)
class Problem:
    """A model, a batch of ``N`` samples, and the sum of the samples' losses.

    Attributes:
        name: what is tried.
        build: makes the model, float32, from the global random state.
        inputs: makes the batch, a nested structure of tensors with the samples along ``batch_dim``.
        total: sum of the samples' losses.
        divisor: what the whole batch's loss is divided by: 6 samples (mean), 1 (sum), a number of tokens.
        assumed: parameters of a layer whose own output is the last thing with a row per sample.
        estimated: parameters that no rule and no recomputation of their own module covers.
        rules: what the coverage names, where the problem is about that.
        oracle: whether ``gradscope.reference`` can be asked; else single samples are run.
        separable: whether a sample alone, or in a smaller micro-batch, adds the same as in the batch.
        batch_dim: where samples lie.
    """

    name: str
    build: Callable[[], Module]
    inputs: Callable[[], Any]
    total: Callable[[Module, Any], Tensor] = _total
    divisor: Callable[[Any], float] = _count
    estimated: frozenset[str] = frozenset()
    assumed: frozenset[str] = frozenset()
    rules: frozenset[str] | None = None
    oracle: bool = True
    separable: bool = True
    batch_dim: int = 0

    def model(self, dtype: torch.dtype = torch.float64) -> Module:
        """The same model at every call, whose weights are float32 numbers in any dtype."""
        torch.manual_seed(1)
        return cast(self.build(), dtype)

    def batch(self, dtype: torch.dtype = torch.float64) -> Any:
        """The same batch at every call."""
        torch.manual_seed(2)
        return tree.tree_map(lambda leaf: _cast(leaf, dtype) if isinstance(leaf, Tensor) else leaf, self.inputs())

    def take(self, batch: Any, samples: Sequence[int]) -> Any:
        """Some samples of a batch."""
        index = torch.tensor(samples)
        return tree.tree_map(
            lambda leaf: leaf.index_select(self.batch_dim, index) if isinstance(leaf, Tensor) else leaf, batch
        )

    def __str__(self) -> str:
        return self.name


def cast(model: Module, dtype: torch.dtype) -> Module:
    """The model with real parameters in this dtype and complex ones in its complex twin."""
    return model._apply(lambda tensor: _cast(tensor, dtype))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def normal(*shape: int, mean: float = 0.5) -> Tensor:
    """Inputs of one sample apiece, not centred: their gradients then have a common part."""
    return mean + torch.randn(N, *shape)
