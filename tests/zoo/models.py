"""Problems of more than one layer: shared weights, several outputs, recomputed modules, odd layouts and losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module, Parameter
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from zoo.layers import ids
from zoo.problem import N, Problem, normal, wave

OWN = frozenset({"multiply", "matrix product"})


class Gate(Module):
    """Parameters of its own and no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = Parameter(torch.randn(4))
        self.mix = Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale.sigmoid()).tanh() @ self.mix


class Branching(Gate):
    """Takes a path that the values decide, which ``vmap`` refuses."""

    def forward(self, x: Tensor) -> Tensor:
        if bool((x.abs() < 100).all()):
            x = x * 2
        return super().forward(x)


class Reused(Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.inner(x).tanh()
        return self.head(x)


class TiedLinears(Module):
    """Two modules, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class TiedHead(Module):
    """The table that is read is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.inner(self.embedding(ids)).tanh())


class TwoShapes(Module):
    """A weight used at two numbers of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x).tanh().mean(1))


class TwoLooks(Module):
    """A kernel that reads two inputs of different size."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x).tanh()).sum(2)


class Named(Module):
    """Layers that are called with keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bilinear, self.gate = nn.Linear(4, 3), nn.Bilinear(3, 3, 4), Gate()

    def forward(self, *, features: Tensor) -> Tensor:
        found = self.linear(input=features).tanh()
        return self.gate(x=self.bilinear(input2=found.cos(), input1=found))


@dataclass
class Scores:
    first: Tensor
    more: dict[str, Tensor]


class Structured(Module):
    """A dictionary in, a dataclass out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, inputs: dict[str, Tensor]) -> Scores:
        found = self.left(inputs["left"])
        return Scores(found.tanh(), {"both": found * self.right(inputs["right"])})


class Features(Module):
    """Two outputs, of which the second comes from the first."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).tanh()
        return features, self.head(features)


class ReturnsLoss(Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return wave(self.head(self.body(x).tanh()))


class SequenceFirst(Module):
    """Samples along dimension 1 of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).tanh())


class TurnedInside(Module):
    """Samples first outside, second inside, and flattened position by position in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.first(x).transpose(0, 1).tanh()
        found = self.second(found.reshape(-1, 3)).reshape(found.shape).tanh()
        return self.third(found).transpose(0, 1)


class Folded(Module):
    """Windows folded into the batch dimension, for a convolution and a module without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(2, 4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.conv(x.flatten(0, 1)).tanh().mean(2)
        return self.head(found).unflatten(0, (x.shape[0], -1))


class Routed(Module):
    """Two experts: the values decide which tokens each of them reads."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        where = flat[:, 0] > 0.5
        out = flat.new_zeros(flat.shape[0], 2)
        out = out.index_put((where.nonzero()[:, 0],), self.left(flat[where]))
        out = out.index_put(((~where).nonzero()[:, 0],), self.right(flat[~where]))
        return out.unflatten(0, x.shape[:2])


class RawParameters(Module):
    """A token in front, positions added, a scale behind: parameters that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.token = Parameter(torch.randn(1, 1, 4))
        self.positions = Parameter(torch.randn(1, 4, 4))
        self.inner = nn.Linear(4, 4)
        self.scale = Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], 1, 4), x], 1) + self.positions
        return self.inner(x.tanh()) * x.mean(1, keepdim=True) * self.scale


class Centers(Module):
    """A parameter that meets the samples in an operator that nothing describes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 3), nn.Linear(5, 2)
        self.centers = Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((-torch.cdist(self.inner(x), self.centers)).exp())


class Positions(Module):
    """A position table read without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(7, 4), nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head((self.words(ids) + self.places(torch.arange(ids.shape[1]))).tanh())


def by_keyword(model: Module, batch: Any) -> Tensor:
    return wave(model(features=batch[0]))


def structured(model: Module, batch: Any) -> Tensor:
    scores = model(batch)
    return wave(scores.first) + 0.3 * wave(scores.more["both"])


def both(model: Module, batch: Any) -> Tensor:
    first, second = model(*batch)
    return wave(first) + 0.5 * wave(second)


def returned(model: Module, batch: Any) -> Tensor:
    return model(*batch)


def sequence_first(model: Module, batch: Any) -> Tensor:
    return wave(model(*batch).transpose(0, 1))


def tokens(model: Module, batch: Any) -> Tensor:
    found, target = model(batch[0]), batch[1]
    return F.cross_entropy(found.flatten(0, 1), target.flatten(), ignore_index=-1, reduction="sum")


def token_count(batch: Any) -> float:
    return float((batch[1] >= 0).sum())


def some_tokens() -> tuple[Tensor, Tensor]:
    found, target = ids(5), ids(5)
    for i in range(N - 1):
        target[i, : i % 5] = -1
    return found, target


def once(batch: Any) -> float:
    return 1.0


def activated() -> Module:
    return nn.Sequential(
        nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 5), nn.LeakyReLU(0.2, inplace=True), nn.Linear(5, 2)
    )


def encoder() -> Module:
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)


def weight_norm() -> Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), parametrizations.weight_norm(nn.Linear(3, 2)))


def x(*shape: int) -> Any:
    return lambda: (normal(*shape),)


MODELS = (
    Problem("own parameters", lambda: nn.Sequential(nn.Linear(4, 4), Gate()), x(4), rules=OWN | {"linear"}),
    Problem("own parameters at the root", Gate, x(4), rules=OWN),
    Problem(
        "vmap refuses", lambda: nn.Sequential(nn.Linear(4, 4), Branching()), x(4), rules=OWN | {"linear"},
        oracle=False,
    ),
    Problem("Linear used three times", Reused, x(4)),
    Problem("tied Linears", TiedLinears, x(4)),
    Problem("tied Linears, middle dimensions", TiedLinears, x(2, 3, 4)),
    Problem("tied table and head", TiedHead, lambda: (ids(5),), rules=frozenset({"linear", "linear + embedding"})),
    Problem("a weight used at two shapes", TwoShapes, x(3, 4)),
    Problem("a kernel used at two sizes", TwoLooks, x(2, 6)),
    Problem("in-place activations", activated, x(4)),
    Problem("mean over tokens", TiedHead, some_tokens, total=tokens, divisor=token_count),
    Problem("sum over samples", lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), x(4), divisor=once),
    Problem("keyword arguments", Named, x(4), total=by_keyword),
    Problem(
        "a dictionary in, a dataclass out", Structured, lambda: {"left": normal(4), "right": normal(2)},
        total=structured, oracle=False,
    ),
    Problem("features and head", Features, x(4), total=both),
    Problem(
        "returns its loss", ReturnsLoss, x(4), total=returned, assumed=frozenset({"head.weight", "head.bias"}),
    ),
    Problem(
        "samples along dimension 1", SequenceFirst, lambda: (normal(3, 4).transpose(0, 1),),
        total=sequence_first, batch_dim=1, oracle=False,
    ),
    Problem("turned inside", TurnedInside, x(3, 4)),
    Problem("folded into the batch", Folded, x(3, 2, 4)),
    Problem("routed tokens", Routed, x(4, 3)),
    Problem("raw parameters", RawParameters, x(3, 4)),
    Problem("positions without a batch", Positions, lambda: (ids(5),)),
    Problem("attention", encoder, x(3, 4)),
    Problem("weight_norm", weight_norm, x(4)),
    Problem("distances to centers", Centers, x(4), estimated=frozenset({"centers"})),
)  # fmt: skip
