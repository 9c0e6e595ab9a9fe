"""Small trainings to plant bugs in: a model, a batch, a loss at a given gradient scale and dtype."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

NOMINAL = 4


@dataclass
class World:
    """``loss(model, batch)`` is what is meant; ``mean``, ``sum`` and ``count`` are its parts for loops."""

    scale: float = 1.0
    dtype: torch.dtype = torch.float32
    kind: str = "mean"
    samples: int = 26
    seed: int = 0

    def __post_init__(self):
        torch.manual_seed(self.seed)
        if self.kind == "tokens":
            self.model = Tagger()
            ids = torch.randint(11, (self.samples, 6))
            target = torch.randint(5, (self.samples, 6))
            target[torch.arange(6)[None] >= torch.randint(1, 7, (self.samples, 1))] = -100
            self.batch = {"ids": ids, "target": target}
        else:
            layers = [nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)]
            if self.kind == "batchnorm":
                layers.insert(1, nn.BatchNorm1d(6))
            if self.kind == "dropout":
                layers.insert(2, nn.Dropout(0.5))
            self.model = nn.Sequential(*layers)
            if self.kind == "one parameter":
                self.model = Slope()
            if self.kind in ZOO:
                self.model = ZOO[self.kind]()
            x = torch.randn(self.samples, 5)
            self.batch = (x, torch.randn(self.samples, 2) + x[:, :2])
        self.model.to(self.dtype)
        if self.kind != "tokens":
            self.batch = tuple(t.to(self.dtype) for t in self.batch)

    def sum(self, model, batch):
        if self.kind == "tokens":
            logits = model(batch["ids"]).flatten(0, 1)
            return self.scale * F.cross_entropy(logits, batch["target"].flatten(), ignore_index=-100, reduction="sum")
        return self.scale * F.mse_loss(model(batch[0]), batch[1], reduction="none").mean(1).sum()

    def count(self, batch):
        return (batch["target"] != -100).sum() if self.kind == "tokens" else len(batch[0])

    def mean(self, model, batch):
        return self.sum(model, batch) / self.count(batch)

    def size(self, batch):
        return len(batch["ids"]) if self.kind == "tokens" else len(batch[0])

    def total(self, micro_batches):
        return sum(self.count(b) for b in micro_batches)

    def share(self, model, batch, micro_batches):
        """The right term of a micro-batch."""
        return self.sum(model, batch) / self.total(micro_batches)

    def sgd(self, **options):
        return torch.optim.SGD(self.model.parameters(), lr=1e-2 / max(self.scale, 1e-30), **options)


class Slope(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return self.slope * x[:, :2]


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, ids):
        return self.head(self.hidden(self.embedding(ids)).tanh())


class Attention(nn.Module):
    """Key biases have a gradient that is zero but for rounding; the raw parameter belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(5, 4))
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x.unsqueeze(-1) * self.position).mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(x.unsqueeze(-1))[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())[:, :2]


def convolution():
    layers = nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 3, padding=1), nn.GroupNorm(3, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(15, 2))


def weight_normed():
    first = nn.utils.parametrizations.weight_norm(nn.Linear(5, 6))
    return nn.Sequential(first, nn.ReLU(inplace=True), nn.LayerNorm(6), nn.Linear(6, 2))


ZOO = {
    "attention": Attention,
    "convolution": convolution,
    "recurrent": Recurrent,
    "tied": Tied,
    "weight norm": weight_normed,
}


def norm_of(world):
    """Norm of the whole gradient, to set clipping limits that bite at every scale."""
    grads = torch.autograd.grad(world.mean(world.model, world.batch), world.model.parameters())
    return sum(float(g.double().square().sum()) for g in grads) ** 0.5
