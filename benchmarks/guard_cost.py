"""What the tagged inner backward and the guard cost: ratios of medians of interleaved steps, per window and amortised.

    python benchmarks/guard_cost.py [--repeats 15] [--threads 1]

A guard window measures which row is whose with an inner backward, compares signed sums, and builds one random sample's gradients
in full. It comes once in ``guard_every`` windows; the others compare sums alone.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope.capture.options import Options


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), Attention(width, 4)
        self.between = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


class Gpt(nn.Module):
    def __init__(self, width=128, depth=4, vocabulary=512, length=64):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def mlp():
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return model, torch.randn(128, 784), torch.randint(10, (128,))


def gpt():
    return Gpt(), torch.randint(512, (16, 64)), torch.randint(512, (16, 64))


def convolutions():
    layers = []
    for a, b in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))
    return model, torch.randn(32, 3, 32, 32), torch.randint(10, (32,))


MODELS = {
    "MLP 784-512-512-10, n 128": mlp,
    "GPT 4 x 128, T 64, n 16": gpt,
    "3 convolutions, 32 x 32, n 32": convolutions,
}


def stepper(build, watched, *, guard=False, spot=True):
    """One timed step of a fresh copy of the model."""
    torch.manual_seed(0)
    model, x, y = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scope = gradscope.watch(model, optimizer) if watched else None

    def step():
        recorder = scope._session.recorder if scope is not None else None
        if recorder is not None:
            recorder.guarding = guard
            if not spot:
                recorder._draw_spot = lambda samples, chosen: None
        started = time.perf_counter()
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    every = Options().guard_every
    print(f"{'ratio to a plain step':32} {'plain':>9} {'window':>8} {'+ tags':>8} {'+ sample':>9} {f'1 in {every}':>8}")
    for name, build in MODELS.items():
        kinds = {
            "plain": stepper(build, False),
            "window": stepper(build, True),
            "tags": stepper(build, True, guard=True, spot=False),
            "guard": stepper(build, True, guard=True),
        }
        times = {kind: [] for kind in kinds}
        for repeat in range(options.repeats + 2):
            for kind, step in kinds.items():
                taken = step()
                if repeat >= 2:
                    times[kind].append(taken)
        plain, window, tags, guard = (median(times[kind]) for kind in kinds)
        amortised = (guard + (every - 1) * window) / every
        ratios = " ".join(f"{value / plain:8.2f}" for value in (window, tags, guard, amortised))
        print(f"{name:32} {plain * 1e3:6.1f} ms {ratios}")


if __name__ == "__main__":
    main()
