"""Problems of one layer each: every setting that changes how a gradient is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from zoo.problem import N, Problem, normal, wave


def between(first: Module, layer: Module) -> Module:
    """The layer behind another one, so that its input asks for a gradient too."""
    return nn.Sequential(first, nn.Tanh(), layer)


def dense(name: str, build: Callable[[], Module], *shape: int, rules: str = "", **options: Any) -> Problem:
    """A layer that reads real numbers."""
    found = frozenset(rules.split(", ")) if rules else None
    return Problem(name, build, lambda: (normal(*shape),), rules=found, **options)


def ids(*shape: int, table: int = 7) -> Tensor:
    """Rows to look up; small tables, so that a sample reads a row more than once."""
    return torch.randint(table, (N, *shape))


def table(name: str, build: Callable[[], Module], *shape: int, **options: Any) -> Problem:
    """A layer that reads rows of a table."""
    return Problem(name, build, lambda: (ids(*shape),), **options)


class Bags(Module):
    """Bags in one flat list, with the offsets computed from their equal sizes: [n, T] ids come in, n bags go out."""

    def __init__(self, bag: Module) -> None:
        super().__init__()
        self.bag = bag

    def forward(self, ids: Tensor) -> Tensor:
        offsets = torch.arange(0, ids.numel(), ids.shape[1])
        if self.bag.include_last_offset:
            offsets = torch.cat([offsets, torch.tensor([ids.numel()])])
        return self.bag(ids.flatten(), offsets)


class WeightedBag(Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 3, mode="sum")

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        return self.bag(ids, per_sample_weights=weights)


class ComplexLinear(Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4, dtype=torch.complex64)
        self.second = nn.Linear(4, 2, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def running(norm: Module) -> Module:
    """In eval mode, with statistics that are not their defaults."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm.eval()


def shaken(norm: Module) -> Module:
    """With a scale that is not one."""
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


class ComplexWide(Module):
    """Few positions and many features, so that norms come from Gram matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(9, 8, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class RaggedBags(Module):
    """Bags of different size, one of them empty: sample i reads its first i ids."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 3, padding_idx=2)
        self.head = nn.Linear(3, 2)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        flat = torch.cat([row[:length] for row, length in zip(ids, lengths, strict=True)])
        return self.head(self.bag(flat, lengths.cumsum(0) - lengths))


def weighted_inputs() -> tuple[Tensor, Tensor]:
    return ids(4), 0.5 + torch.rand(N, 4)


def padded_ids() -> tuple[Tensor]:
    found = ids(5)
    found[1, 2:] = 3
    found[4, 0] = 3
    return (found,)


def two_inputs(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (normal(*shape, 3), normal(*shape, 2))


LAYERS = (
    dense("Linear", lambda: nn.Linear(4, 3), 4, rules="linear"),
    dense("Linear, one middle dimension", lambda: between(nn.Linear(4, 3), nn.Linear(3, 5)), 3, 4, rules="linear"),
    dense("Linear, two middle dimensions", lambda: between(nn.Linear(4, 3), nn.Linear(3, 2)), 2, 3, 4, rules="linear"),
    dense("Linear without bias", lambda: between(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)), 4),
    dense("Linear, wide: Gram norms", lambda: nn.Linear(20, 30), 2, 20, rules="linear"),
    Problem("Linear, complex", ComplexLinear, lambda: (torch.complex(normal(3), normal(3, mean=0.0)),)),
    Problem("Linear, complex, middle dimension", ComplexWide, lambda: (torch.complex(normal(2, 9), normal(2, 9)),)),
    dense("InstanceNorm without parameters", lambda: nn.Sequential(nn.Conv1d(2, 4, 2, bias=False), nn.InstanceNorm1d(4)), 2, 5),
    dense("Conv1d", lambda: between(nn.Conv1d(2, 3, 3), nn.Conv1d(3, 2, 2, padding=1)), 2, 7, rules="convolution"),
    dense("Conv2d", lambda: between(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3)), 2, 5, 6, rules="convolution"),
    dense("Conv3d", lambda: nn.Conv3d(2, 2, 2, padding=(1, 0, 1)), 2, 3, 4, 3, rules="convolution"),
    dense("Conv2d, groups", lambda: between(nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.Conv2d(6, 6, 2, groups=6)), 4, 5, 5),
    dense("Conv2d, stride and dilation", lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 3), dilation=(1, 2)), 2, 8, 9),
    dense("Conv1d, stride that leaves inputs over", lambda: nn.Conv1d(2, 3, 3, stride=3, dilation=2), 2, 12),
    dense("Conv2d, same padding", lambda: nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(2, 1)), 2, 5, 5),
    dense("Conv2d, reflect padding", lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), 2, 5, 5),
    dense("Conv1d, replicate padding", lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="replicate"), 2, 5),
    dense("Conv3d, circular padding", lambda: nn.Conv3d(1, 2, 2, padding=1, padding_mode="circular"), 1, 3, 3, 3),
    dense("Conv2d, rows in fours", lambda: between(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, (3, 2), padding=1)), 2, 8, 5),
    dense("Conv2d without bias", lambda: nn.Conv2d(2, 3, 3, bias=False), 2, 5, 5),
    dense("ConvTranspose1d", lambda: between(nn.ConvTranspose1d(2, 3, 3), nn.ConvTranspose1d(3, 2, 2)), 2, 5),
    dense(
        "ConvTranspose2d, everything",
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        4, 3, 4, rules="transposed convolution",
    ),
    dense("ConvTranspose3d", lambda: nn.ConvTranspose3d(2, 2, 2, stride=2, output_padding=1, bias=False), 2, 2, 2, 3),
    table("Embedding", lambda: nn.Embedding(7, 3), rules=frozenset({"embedding"})),
    table("Embedding, repeated rows", lambda: nn.Sequential(nn.Embedding(7, 3), nn.Tanh(), nn.Linear(3, 2)), 5),
    Problem("Embedding, padding row", lambda: nn.Embedding(7, 3, padding_idx=3), padded_ids),
    Problem(
        "Embedding, scaled by frequency", lambda: nn.Embedding(7, 3, scale_grad_by_freq=True), lambda: (ids(4),),
        separable=False,
    ),
    table("Embedding, sparse", lambda: nn.Embedding(7, 3, sparse=True), 4),
    table("Embedding, max_norm", lambda: nn.Embedding(7, 3, max_norm=1.0), 4),
    table("EmbeddingBag, mean", lambda: nn.EmbeddingBag(7, 3), 4, rules=frozenset({"embedding bag"})),
    table("EmbeddingBag, sum", lambda: nn.EmbeddingBag(7, 3, mode="sum"), 4, rules=frozenset({"embedding bag"})),
    table("EmbeddingBag, max", lambda: nn.EmbeddingBag(7, 3, mode="max"), 4, rules=frozenset({"recomputed"})),
    Problem("EmbeddingBag, weights", WeightedBag, weighted_inputs),
    Problem("EmbeddingBag, mean with a padding row", lambda: nn.EmbeddingBag(7, 3, padding_idx=3), padded_ids),
    table("EmbeddingBag, flat with offsets", lambda: Bags(nn.EmbeddingBag(7, 3, mode="sum")), 4),
    table("EmbeddingBag, last offset included", lambda: Bags(nn.EmbeddingBag(7, 3, include_last_offset=True)), 4),
    Problem("EmbeddingBag, ragged", RaggedBags, lambda: (ids(6), torch.arange(N))),
    dense("LayerNorm", lambda: between(nn.Linear(4, 4), shaken(nn.LayerNorm(4))), 3, 4),
    dense("LayerNorm over two dimensions, no bias", lambda: shaken(nn.LayerNorm((3, 4), bias=False)), 2, 3, 4),
    dense("RMSNorm", lambda: between(nn.Linear(4, 4), shaken(nn.RMSNorm(4))), 3, 4, rules="linear, RMS norm"),
    dense("GroupNorm", lambda: between(nn.Conv1d(2, 4, 2), shaken(nn.GroupNorm(2, 4))), 2, 6),
    dense("InstanceNorm", lambda: between(nn.Conv2d(2, 3, 2), shaken(nn.InstanceNorm2d(3, affine=True))), 2, 5, 5),
    dense(
        "InstanceNorm by running statistics",
        lambda: between(nn.Conv1d(2, 3, 2), running(nn.InstanceNorm1d(3, affine=True, track_running_stats=True))), 2, 5,
    ),
    dense("BatchNorm in eval mode", lambda: between(nn.Linear(4, 3), running(nn.BatchNorm1d(3))), 4, rules="linear, batch norm"),
    dense("BatchNorm2d in eval mode", lambda: between(nn.Conv2d(1, 3, 2), running(nn.BatchNorm2d(3))), 1, 4, 4),
    dense("PReLU, one slope", lambda: nn.Sequential(nn.Linear(4, 3), nn.PReLU()), 4, rules="linear, PReLU"),
    dense("PReLU, a slope per channel", lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.PReLU(3)), 2, 5),
    Problem("Bilinear", lambda: nn.Bilinear(3, 2, 4), two_inputs(), rules=frozenset({"bilinear"})),
    Problem("Bilinear, two middle dimensions", lambda: nn.Bilinear(3, 2, 4, bias=False), two_inputs(2, 3)),
)  # fmt: skip

__all__ = ["LAYERS", "wave"]
