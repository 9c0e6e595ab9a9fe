"""Peak memory of a watched run beside an unwatched one, with activation checkpoints and without.

    python benchmarks/checkpoint_memory.py [--positions 256] [--samples 16]

Counts the bytes of all storages that are alive at once, as the operators make them: the same on every machine.
"""

from __future__ import annotations

import argparse
import gc
import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import gradscope

SHAPES = ((8, 16), (16, 32), (12, 64), (24, 64))
KINDS = {"no checkpoint": None, "non-reentrant": False, "reentrant": True}


class Peak(TorchDispatchMode):
    """Largest number of bytes in storages that were alive at once, of those made while it is on."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return result

    def note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone():
            self.alive.pop(key, None)
            self.now -= size

        self.alive[key] = weakref.finalize(storage, gone)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.before, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.second(torch.relu(self.first(self.before(x))))
        return x + self.wide(x)


class Blocks(nn.Module):
    def __init__(self, depth, width, reentrant):
        super().__init__()
        self.stem, self.head = nn.Linear(4, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x)


def peaks(model, x, watched):
    """Peak of a window with a guard, and of one without."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scope = gradscope.watch(model, optimizer) if watched else None
    found = []
    for _ in range(2):
        gc.collect()
        with Peak() as memory:
            model(x).square().mean().backward()
        found.append(memory.peak)
        optimizer.step()
        optimizer.zero_grad()
    if scope is not None:
        scope.close()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--samples", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| blocks × width | checkpoint | unwatched | guard window | other windows |\n|---|---|---|---|---|")
    for depth, width in SHAPES:
        for kind, reentrant in KINDS.items():
            torch.manual_seed(0)
            x = torch.randn(given.samples, given.positions, 4)
            plain = peaks(Blocks(depth, width, reentrant), x, False)[1]
            guarded, other = (100 * (peak / plain - 1) for peak in peaks(Blocks(depth, width, reentrant), x, True))
            print(f"| {depth} × {width} | {kind} | {plain / 2**20:.1f} MiB | {guarded:+.1f} % | {other:+.2f} % |")


if __name__ == "__main__":
    main()
