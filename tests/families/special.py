"""Layers that do something unusual with their parameters, and models of unusual shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from families.family import Family, N, normal, tokens, wave


def _around(layer: Module) -> Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 3))


def _old(wrap: Callable[..., Module], **settings: Any) -> Callable[[], Module]:
    return lambda: _around(wrap(nn.Linear(4, 4), **settings))


class Tables(Module):
    """Embeddings with every option that changes their gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Embedding(12, 4, padding_idx=3)
        self.sparse = nn.Embedding(12, 4, sparse=True)
        self.bounded = nn.Embedding(12, 4, max_norm=1.0)
        self.frequent = nn.Embedding(12, 4, scale_grad_by_freq=True)
        self.bag = nn.EmbeddingBag(12, 4, mode="sum")
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        tables = (self.plain, self.sparse, self.bounded, self.frequent)
        # scale_grad_by_freq divides by how often the whole micro-batch reads a row: still a sum over samples.
        return self.head(sum(table(ids) for table in tables).mean(1) + self.bag(ids))


class Squash(torch.autograd.Function):
    """A function with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return (x * scale).tanh()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, scale = ctx.saved_tensors
        inner = grad * (1 - (x * scale).tanh() ** 2)
        return inner * scale, (inner * x).sum(0)


class Own(Module):
    """A layer around a custom function."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4) + 0.5)
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return Squash.apply(self.inner(x), self.scale)


class Waves(Module):
    """Complex parameters: a linear layer, and a filter in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(5, 4, dtype=torch.complex64))
        self.inner = nn.Linear(4, 3, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=1) * self.filter
        return self.inner(spectrum).abs()


@dataclass
class Answer:
    """What a model returns: two outputs, one made from the other."""

    features: Tensor
    scores: dict[str, Tensor]


class Structured(Module):
    """Dictionaries in, a dataclass out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, inputs: dict[str, Tensor]) -> Answer:
        features = (self.left(inputs["a"]) + self.right(inputs["b"])).tanh()
        return Answer(features, {"head": self.head(features)})


def answered(model: Module, batch: Any) -> Tensor:
    answer = model(*batch)
    return wave(answer.features) + wave(answer.scores["head"])


class Experts(Module):
    """Tokens routed to one of three experts: which rows a layer reads depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 4)
        weights, chosen = self.router(rows).softmax(1).max(1)
        out = torch.zeros_like(rows)
        for k, expert in enumerate(self.experts):
            index = (chosen == k).nonzero()[:, 0]
            out = out.index_add(0, index, expert(rows[index]) * weights[index, None])
        return out.reshape(x.shape)


class Fused(Module):
    """Experts' weights in one tensor, picked by index for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 4, 6) / 2), nn.Parameter(torch.randn(3, 6, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(-1)
        hidden = torch.einsum("ntd,edf->ntef", x, self.up).relu()
        return torch.einsum("ntef,efd,nte->ntd", hidden, self.down, scores)


class Memory(Module):
    """Raw parameters: queries that are learnt, positions, a bias for each relative distance, gates."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 4))
        self.positions = nn.Parameter(torch.randn(5, 4))
        self.distances = nn.Parameter(torch.randn(2, 9))
        self.gates = nn.Parameter(torch.rand(4))
        self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        index = torch.arange(5).unsqueeze(1) - torch.arange(5) + 4
        among = (x @ x.transpose(1, 2)).unsqueeze(1) + self.distances[:, index]
        x = x + (among.softmax(-1).mean(1) @ self.value(x)) * self.gates
        return (self.queries @ self.key(x).transpose(1, 2)).softmax(-1) @ x


class HyperNetwork(Module):
    """One layer's weights are computed from a learnt code."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(3))
        self.maker = nn.Linear(3, 16)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.maker(self.code).tanh().reshape(4, 4)).tanh())


class Windows(Module):
    """Windows of an image folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.bias = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        windows = x.reshape(n, 2, 2, 2, 2, 4).transpose(2, 3).reshape(n * 4, 4, 4)
        mixed = (windows @ windows.transpose(1, 2) + self.bias).softmax(-1) @ self.inner(windows)
        return self.norm(mixed).reshape(n, 4, 4, 4)


class ScalarLoss(Module):
    """Returns its mean loss, as transformers do when given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return wave(self.head(self.inner(x).tanh()))


def _made(new: str, **settings: Any) -> Callable[[], Module]:
    wrap = getattr(parametrizations, new)
    return lambda: _around(wrap(nn.Linear(4, 4), **settings))


def _pairs() -> tuple[dict[str, Tensor]]:
    return ({"a": torch.randn(N, 4), "b": torch.randn(N, 3)},)


FAMILIES = (
    Family("weight norm (hooks)", _old(weight_norm), normal(4)),
    Family("weight norm (parametrization)", _made("weight_norm"), normal(4)),
    Family("spectral norm (hooks)", _old(spectral_norm), normal(4)),
    Family("spectral norm (parametrization)", _made("spectral_norm"), normal(4)),
    Family("orthogonal (parametrization)", _made("orthogonal"), normal(4)),
    Family("embeddings: sparse, max norm, bags", Tables, tokens(12, 5)),
    Family("a custom autograd.Function", Own, normal(4), foreign=True),
    Family("complex parameters", Waves, normal(8, 4)),
    Family("dictionaries and dataclasses", Structured, _pairs, answered),
    Family("mixture of experts, routed", Experts, normal(5, 4)),
    Family("mixture of experts, fused", Fused, normal(5, 4)),
    Family("learnt queries, positions, relative biases", Memory, normal(5, 4)),
    Family("hypernetwork", HyperNetwork, normal(4)),
    Family("windows folded into the batch", Windows, normal(4, 4, 4)),
    Family("losses from the model itself", ScalarLoss, normal(4), lambda model, batch: model(*batch)),
)
