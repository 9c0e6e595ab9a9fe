"""Healthy models at random: blocks for vectors, tokens and images, put together by a seed."""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Twice(Residual):
    """The same weights two times."""

    def forward(self, x):
        return self.inner(self.inner(x))


class Scale(nn.Module):
    """A raw parameter, as in LayerScale."""

    def __init__(self, width, dim=-1):
        super().__init__()
        self.gamma, self.dim = nn.Parameter(torch.rand(width) + 0.5), dim

    def forward(self, x):
        return x * self.gamma.reshape([-1 if d == self.dim % x.dim() else 1 for d in range(x.dim())])


class Positions(nn.Module):
    """A table that all samples share."""

    def __init__(self, tokens, width):
        super().__init__()
        self.table = nn.Embedding(tokens, width)

    def forward(self, x):
        return x + self.table(torch.arange(x.shape[1]))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.cell = nn.GRU(width, width, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


class AlongTokens(nn.Module):
    """A convolution over the sequence."""

    def __init__(self, width, groups):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1, groups=groups)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class TokenModel(nn.Module):
    """Ids in, scores out; the head may be the table."""

    def __init__(self, vocabulary, width, blocks, tied):
        super().__init__()
        self.table, self.blocks = nn.Embedding(vocabulary, width), nn.Sequential(*blocks)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.blocks(self.table(ids)))


ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus)


def mlp(draw, width):
    hidden = draw.choice((3, 8, 24))
    return nn.Sequential(
        nn.Linear(width, hidden, bias=draw.random() < 0.8), draw.choice(ACTIVATIONS)(), nn.Linear(hidden, width)
    )


def vector_block(draw, width):
    return draw.choice((
        lambda: mlp(draw, width),
        lambda: Residual(mlp(draw, width)),
        lambda: Twice(mlp(draw, width)),
        lambda: nn.LayerNorm(width),
        lambda: Scale(width),
        lambda: nn.PReLU(width),
        lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(width, width)),
        lambda: nn.RMSNorm(width),
    ))()  # fmt: skip


def token_block(draw, width, tokens):
    return draw.choice((
        lambda: Residual(mlp(draw, width)),
        lambda: Twice(mlp(draw, width)),
        lambda: Residual(Attention(width)),
        lambda: Residual(nn.Sequential(nn.LayerNorm(width), Attention(width), Scale(width))),
        lambda: Positions(tokens, width),
        lambda: AlongTokens(width, draw.choice((1, 2, width))),
        lambda: Recurrent(width),
        lambda: nn.LayerNorm(width),
        lambda: nn.RMSNorm(width),
    ))()  # fmt: skip


def image_block(draw, width):
    return draw.choice((
        lambda: nn.Sequential(nn.Conv2d(width, width, 3, padding=1), draw.choice(ACTIVATIONS)()),
        lambda: Residual(nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))),
        lambda: nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=draw.choice((1, 2, width))),
        lambda: nn.GroupNorm(2, width),
        lambda: nn.InstanceNorm2d(width, affine=True),
        lambda: Scale(width, 1),
        lambda: nn.ConvTranspose2d(width, width, 3, padding=1),
        lambda: nn.PReLU(),
    ))()  # fmt: skip


def random_case(seed):
    """A model, its inputs and its loss, float32."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    n, depth = draw.choice((2, 3, 5, 8, 16)), draw.randint(1, 5)
    kind = seed % 3
    if kind == 0:
        width = draw.choice((2, 6, 16))
        model = nn.Sequential(
            nn.Linear(5, width), *(vector_block(draw, width) for _ in range(depth)), nn.Linear(width, 3)
        )
        x = torch.randn(n, 5) * draw.choice((0.01, 1.0, 30.0)) + draw.choice((0.0, 1.0))
    elif kind == 1:
        width, tokens, vocabulary = draw.choice((4, 8, 16)), draw.choice((1, 3, n, 12)), draw.choice((7, 50))
        blocks = [token_block(draw, width, tokens) for _ in range(depth)]
        model, x = (
            TokenModel(vocabulary, width, blocks, draw.random() < 0.4),
            torch.randint(vocabulary, (n, tokens)),
        )
    else:
        width, side = draw.choice((2, 4, 8)), draw.choice((4, 7))
        model = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), *(image_block(draw, width) for _ in range(depth)),
            draw.choice((nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2))), nn.Flatten(), nn.LazyLinear(4),
        )  # fmt: skip
        x = torch.randn(n, 3, side, side)
        model(x)
    scale = draw.choice((1, 1, 1e-4, 1e3))

    def loss(output):
        flat = output.float().flatten(0, -2)
        target = torch.arange(len(flat)) % flat.shape[1]
        return scale * distance(flat, target)

    distance = draw.choice((F.cross_entropy, lambda o, t: o.square().mean(), lambda o, t: o.sin().sum()))
    return model, x, loss
