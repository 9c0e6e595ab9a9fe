"""The same training in one process and in several."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradscope

FEATURES, CLASSES, STEPS = 3, 4, 3
FIGURES = ("grad_norm", "trace_cov", "grad_sq", "snr", "diversity")


@dataclass(frozen=True)
class Loop:
    """A way to train.

    Attributes:
        name: of the test.
        wrap: "ddp", "fsdp", or "after" and "before" for ``watch`` before either.
        wrapping: arguments of the wrapper.
        sizes: per micro-step, each rank's number of samples (cycled).
        synchronised: per micro-step, whether it averages gradients; by default only the last one.
        net: which model.
        dtype: of the parameters.
        watching: arguments of ``watch``.
        zero: ``zero_grad(set_to_none=...)``; None for no ``zero_grad`` at all.
        weights: whether samples are weighed.
        mixed: whether fully_shard computes in bfloat16.
    """

    name: str
    wrap: str = "ddp"
    wrapping: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[int, ...], ...] = ((4,),)
    synchronised: tuple[bool, ...] = ()
    net: str = "plain"
    dtype: torch.dtype = torch.float64
    watching: dict[str, Any] = field(default_factory=dict)
    zero: bool | None = True
    weights: bool = False
    mixed: bool = False
    steps: int = STEPS

    def size(self, step: int, rank: int) -> int:
        """Samples of a rank in a micro-step."""
        sizes = self.sizes[step]
        return sizes[rank % len(sizes)]


class Branches(nn.Module):
    """Of two branches each sample's rank takes one, so that the other is unused there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, CLASSES)
        self.second = nn.Linear(FEATURES, CLASSES)
        self.head = nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor, branch: int = 0) -> Tensor:
        """One of the branches, or both."""
        found = self.first(x) if branch != 1 else self.second(x)
        return self.head(torch.tanh(found + self.second(x) if branch == 2 else found))


class Raw(nn.Module):
    """Parameters without a layer, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(FEATURES))
        self.table = nn.Embedding(5, FEATURES)
        self.norm = nn.LayerNorm(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the table's rows."""
        ids = (x[:, :1].abs() * 10).long() % 5
        return (self.norm(x * self.scale) + self.table(ids)[:, 0]) @ self.table.weight.t()


def build(loop: Loop) -> nn.Module:
    """The model, the same on all ranks."""
    torch.manual_seed(0)
    if loop.net == "branches":
        return Branches().to(loop.dtype)
    if loop.net == "raw":
        return Raw().to(loop.dtype)
    layers = [nn.Linear(FEATURES, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, CLASSES)]
    return nn.Sequential(*layers).to(loop.dtype)


def batch(loop: Loop, window: int, step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Samples and their weights of one rank's micro-step."""
    generator = torch.Generator().manual_seed(1000 * window + 10 * step + rank)
    size = loop.size(step, rank)
    x = torch.randn(size, FEATURES, generator=generator, dtype=torch.float64)
    return x.to(loop.dtype), torch.rand(size, generator=generator, dtype=torch.float64) + 0.5


def loss_of(model: nn.Module, x: Tensor, weights: Tensor, loop: Loop, rank: int, world: int) -> Tensor:
    """A rank's loss, as users write it."""
    extra = (rank % 2 if rank < world - 1 else 2,) if loop.net == "branches" else ()
    found = model(x, *extra).float() if loop.mixed else model(x, *extra)
    each = (found - 0.3).square().sum(1)
    if loop.weights:
        return (each * weights.to(each)).sum() / 3
    return each.mean() if len(each) else each.sum()


def figures(report: gradscope.Report) -> dict[str, dict[str, float]]:
    """Every number of a report, by unit."""
    units = {"total": report.total, **{f"parameter {k}": v for k, v in report.parameters.items()}}
    units |= {f"layer {k}": v for k, v in report.layers.items()}
    return {name: {f: getattr(stats, f) for f in FIGURES} for name, stats in units.items()}


def record(report: gradscope.Report) -> dict[str, Any]:
    """What tests compare, without tensors that are shared between processes."""
    return {
        "figures": figures(report),
        "samples": report.window_samples,
        "micro_steps": report.window_micro_steps,
        "status": {name: found.status for name, found in report.coverage.items()},
        "rule": {name: found.rule for name, found in report.coverage.items()},
        "reason": {name: found.reason for name, found in report.coverage.items()},
        "norms": None if report.total.sample_norms is None else report.total.sample_norms.tolist(),
        "variance": {k: v.variance.tolist() for k, v in report.parameters.items() if v.variance is not None},
        "preconditioned": {k: v.preconditioned_noise_scale for k, v in report.parameters.items()},
        "warnings": list(report.warnings),
    }


def one_process(loop: Loop, world: int) -> list[dict[str, Any]]:
    """The union of all ranks' samples, in one process: each rank's micro-steps one after another, each loss over the world."""
    model = build(loop)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    options = {k: v for k, v in loop.watching.items() if k != "gather_norms"}
    found = []
    with gradscope.watch(model, optimizer, **options) as scope:
        for window in range(loop.steps):
            for rank in range(world):
                for step in range(len(loop.sizes)):
                    x, weights = batch(loop, window, step, rank)
                    if loop.size(step, rank) == 0:
                        continue
                    if loop.weights:
                        scope.annotate(weights=weights)
                    (loss_of(model, x, weights, loop, rank, world) / world / len(loop.sizes)).backward()
            optimizer.step()
            _clear(optimizer, loop)
            if scope.last is not None:
                found.append(record(scope.last))
    return found


def _clear(optimizer: torch.optim.Optimizer, loop: Loop) -> None:
    if loop.zero is not None:
        optimizer.zero_grad(set_to_none=loop.zero)


def shard(model: nn.Module, loop: Loop) -> nn.Module:
    """``fully_shard`` on each layer and on the whole."""
    options = dict(loop.wrapping)
    if loop.mixed:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.children():
        if any(True for _ in layer.parameters()) and not isinstance(layer, nn.Embedding):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def wrapped(model: nn.Module, loop: Loop) -> nn.Module:
    """The model as several ranks train it."""
    return shard(model, loop) if "fsdp" in loop.wrap else DistributedDataParallel(model, **loop.wrapping)


def unsynchronised(model: nn.Module, synchronised: bool) -> Any:
    """What the wrapper offers for micro-steps that do not average gradients."""
    if isinstance(model, DistributedDataParallel):
        return nullcontext() if synchronised else model.no_sync()
    model.set_requires_gradient_sync(synchronised)
    return nullcontext()


def several(rank: int, world: int, loop: Loop) -> list[dict[str, Any]]:
    """One rank's part of the same training."""
    bare = build(loop)
    early = gradscope.watch(bare, **loop.watching) if "before" in loop.wrap else None
    model = wrapped(bare, loop)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2)
    target = bare if "inner" in loop.wrap else model
    found: list[dict[str, Any]] = []
    with early or gradscope.watch(target, optimizer, **loop.watching) as scope:
        for window in range(loop.steps):
            micro(rank, world, loop, model, scope, window)
            optimizer.step()
            if early is not None:
                scope.step()
            _clear(optimizer, loop)
            if scope.last is not None:
                found.append(record(scope.last))
    return found


def micro(rank: int, world: int, loop: Loop, model: nn.Module, scope: gradscope.Scope | None, window: int) -> None:
    """One window's micro-steps of a rank."""
    count = len(loop.sizes)
    flags: Sequence[bool] = loop.synchronised or [step == count - 1 for step in range(count)]
    for step in range(count):
        x, weights = batch(loop, window, step, rank)
        with unsynchronised(model, flags[step]):
            if loop.weights and len(x) and scope is not None:
                scope.annotate(weights=weights)
            (loss_of(model, x, weights, loop, rank, world) / count).backward()


def trained(rank: int, world: int, loop: Loop, *, watched: bool) -> list[Tensor]:
    """What is left of the training: this rank's parameters and the random state."""
    bare = build(loop)
    model = wrapped(bare, loop)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2)
    with gradscope.watch(model, optimizer, **loop.watching) if watched else nullcontext() as scope:
        for window in range(loop.steps):
            micro(rank, world, loop, model, scope, window)
            optimizer.step()
            _clear(optimizer, loop)
    parameters = [getattr(one, "_local_tensor", one).detach().clone() for one in bare.parameters()]
    return [*parameters, torch.get_rng_state()]


def all_of(rank: int, world: int, loops: Sequence[Loop]) -> dict[str, Any]:
    """Several loops in one set of processes, which cost more to start than to run."""
    found: dict[str, Any] = {}
    for loop in loops:
        found[loop.name] = several(rank, world, loop)
        dist.barrier()
    return found


def untouched(rank: int, world: int, loops: Sequence[Loop]) -> dict[str, bool]:
    """Whether each loop leaves the same bits with and without a scope."""
    found: dict[str, bool] = {}
    for loop in loops:
        plain, watched = (trained(rank, world, loop, watched=flag) for flag in (False, True))
        found[loop.name] = all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    return found


def all_and_untouched(rank: int, world: int, loops: Sequence[Loop], again: Sequence[Loop]) -> Any:
    """Both."""
    return all_of(rank, world, loops), untouched(rank, world, again)
