"""Training in several processes in which something differs between them, goes wrong, or is unusual."""

import io
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import gradscope
from tests.ranks.loops import FEATURES, record

CLASSES = 4


def net() -> nn.Sequential:
    """The same on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()


def data(rank: int, step: int, size: int = 4) -> Tensor:
    """A rank's samples."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(size, FEATURES, generator=generator, dtype=torch.float64)


class Training:
    """A loop on one rank, taken apart so that its parts can go wrong."""

    def __init__(self, rank: int, watching: bool = True, sharded: bool = False, **options: Any) -> None:
        self.rank, self.bare = rank, net()
        wrapping = options.pop("wrapping", {})
        self.model: Any = _shard(self.bare) if sharded else DistributedDataParallel(self.bare, **wrapping)
        self.optimizer = torch.optim.SGD(self.bare.parameters(), lr=0.1)
        self.scope = gradscope.watch(self.model, self.optimizer, **options) if watching else None

    def loss(self, step: int, model: Any = None) -> Tensor:
        """Mean over this rank's samples."""
        return (model or self.model)(data(self.rank, step)).square().mean()

    def step(self) -> None:
        """The update, and clean gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def train(self, steps: int, start: int = 0) -> None:
        """An ordinary stretch."""
        for step in range(start, start + steps):
            self.loss(step).backward()
            self.step()

    def last(self) -> dict[str, Any] | None:
        """The newest window, if there is one; the scope is left open."""
        return None if self.scope is None or self.scope.last is None else record(self.scope.last)

    def end(self) -> dict[str, Any] | None:
        """The newest window; the scope is closed."""
        found = self.last()
        if self.scope is not None:
            self.scope.close()
        return found


def _shard(model: nn.Module, **options: Any) -> nn.Module:
    for layer in model.children():
        if list(layer.parameters()):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def ordinary(rank: int, world: int) -> Any:
    """Nothing goes wrong."""
    training = Training(rank)
    training.train(3)
    return training.end()


def ordinary_again(rank: int, world: int) -> Any:
    """The same after all troubles."""
    return ordinary(rank, world)


def watched_on_one(rank: int, world: int) -> Any:
    """Only the first rank watches."""
    training = Training(rank, watching=rank == 0)
    training.train(3)
    return training.end()


def watched_late(rank: int, world: int) -> Any:
    """The second rank begins to watch when the first has closed a window."""
    training = Training(rank, watching=rank == 0)
    training.train(1)
    if rank:
        training.scope = gradscope.watch(training.model, training.optimizer)
    training.train(2, start=1)
    return training.end()


def other_settings(rank: int, world: int) -> Any:
    """Ranks measure other windows."""
    training = Training(rank, every=1 + rank)
    training.train(3)
    return training.end()


def closed_on_one(rank: int, world: int) -> Any:
    """The first rank has seen enough."""
    training = Training(rank)
    training.train(2)
    before = training.last()
    if rank == 0:
        training.end()
    training.train(2, start=2)
    return before, training.end()


def failing_hooks(rank: int, world: int) -> Any:
    """On the second rank something of gradscope fails in every window from the second on."""
    training = Training(rank)
    training.train(1)
    if rank == 1 and training.scope is not None:
        opened = training.scope._session.opened
        opened.close = _broken  # type: ignore[method-assign]
    training.train(1, start=1)
    middle = training.last()
    training.train(1, start=2)
    return middle, training.end()


def _broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("planted")


def failing_layer(rank: int, world: int) -> Any:
    """On the second rank a hook fails."""
    training = Training(rank)
    if rank == 1 and training.scope is not None:
        recorder: Any = training.scope._session.recorder
        recorder.forwarding.enrol_noted = _broken
    training.train(2)
    return training.end()


def skipped_on_one(rank: int, world: int, every: int = 1) -> Any:
    """The second rank leaves out a step."""
    training = Training(rank, every=every)
    for step in range(4 * every):
        training.loss(step).backward()
        if rank == 1 and step == 1:
            training.optimizer.zero_grad()
        else:
            training.step()
    return training.end()


def skipped_on_one_of_few(rank: int, world: int) -> Any:
    """The same where not every window is measured."""
    return skipped_on_one(rank, world, every=3)


def skipped_by_scaler(rank: int, world: int) -> Any:
    """A GradScaler skips a step on all ranks, for what one of them saw."""
    training = Training(rank)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    found = []
    for step in range(4):
        loss = training.loss(step) * (float("inf") if rank == 1 and step == 1 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
        found.append(training.last())
    training.end()
    return found


def without_sync(rank: int, world: int) -> Any:
    """No micro-step averages gradients."""
    training = Training(rank)
    training.train(1)
    with training.model.no_sync():
        training.loss(1).backward()
    training.step()
    return training.end()


def last_without_sync(rank: int, world: int) -> Any:
    """The last micro-step does not average gradients, the first does."""
    training = Training(rank)
    training.train(1)
    training.loss(1).backward()
    with training.model.no_sync():
        training.loss(2).backward()
    training.step()
    return training.end()


def around_the_wrapper(rank: int, world: int) -> Any:
    """The model inside the wrapper is called."""
    training = Training(rank)
    training.train(1)
    training.loss(1, training.bare).backward()
    training.step()
    return training.end()


def ignored_by_wrapper(rank: int, world: int) -> Any:
    """One parameter is not averaged."""
    bare = net()
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(bare, ["2.bias"])
    model = DistributedDataParallel(bare)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for step in range(2):
            model(data(rank, step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return record(scope.report(last=1))


def not_wrapped(rank: int, world: int) -> Any:
    """Ranks train models of their own."""
    bare = net()
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    with gradscope.watch(bare, optimizer) as scope:
        for step in range(2):
            bare(data(rank, step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return record(scope.report(last=1))


def joined(rank: int, world: int) -> Any:
    """The second rank runs out of inputs."""
    training = Training(rank)
    with training.model.join():
        training.train(3 - rank)
    return training.end()


def compressed(rank: int, world: int) -> Any:
    """Gradients are sent in half precision."""
    training = Training(rank)
    training.model.register_comm_hook(None, _compressing_hook)
    training.train(2)
    return training.end()


def _compressing_hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    sent = (bucket.buffer() / dist.get_world_size()).bfloat16()
    future = dist.all_reduce(sent, async_op=True).get_future()
    return future.then(lambda found: found.value()[0].to(bucket.buffer()))


def summed(rank: int, world: int) -> Any:
    """Gradients are added up, not averaged."""
    training = Training(rank)
    training.model.register_comm_hook(None, _sum_hook)
    training.train(2)
    return training.end()


def _sum_hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda found: found.value()[0])


def falsified(rank: int, world: int) -> Any:
    """What is reduced is not what the ranks computed."""
    training = Training(rank)
    training.model.register_comm_hook(None, _false_hook)
    training.train(2)
    return training.end()


def _false_hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda found: found.value()[0].sign())


def looked_aside(rank: int, world: int) -> Any:
    """The first rank calls the model more often than the others: to evaluate, and for gradients of inputs."""
    training = Training(rank, every=2)
    for step in range(5):
        if rank == 0:
            with torch.no_grad():
                training.bare(data(rank, step))
            x = data(rank, step).requires_grad_()
            torch.autograd.grad(training.bare(x).sum(), x)
            training.bare(data(rank, step)).sum()
        training.loss(step).backward()
        training.step()
    return training.end()


def two_models(rank: int, world: int) -> Any:
    """Two of one kind, each with its scope."""
    first, second = Training(rank), Training(rank)
    for step in range(3):
        first.train(1, start=step)
        second.train(2, start=step)
    return first.end(), second.end()


def without_capture(rank: int, world: int) -> Any:
    """Layers are left alone: the gradients of ranks and micro-steps show the noise."""
    training = Training(rank, capture=False)
    found = []
    for step in range(3):
        with training.model.no_sync():
            (training.loss(10 * step) / 2).backward()
        (training.loss(10 * step + 1) / 2).backward()
        training.step()
        found.append(training.last())
    training.end()
    return found


def without_capture_at_once(rank: int, world: int) -> Any:
    """The same with one micro-step on each rank: the local against the reduced gradient."""
    training = Training(rank, capture=False)
    training.train(2)
    return training.end()


def batch_norm(rank: int, world: int) -> Any:
    """Samples of a rank interact."""
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)).double()
    model = DistributedDataParallel(bare)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for step in range(2):
            model(data(rank, step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return record(scope.report(last=1))


def sharded_scaler(rank: int, world: int) -> Any:
    """A GradScaler with sharded parameters."""
    training = Training(rank, sharded=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for step in range(2):
        scaler.scale(training.loss(step)).backward()
        scaler.step(training.optimizer)
        scaler.update()
        training.optimizer.zero_grad()
    return training.end()


def sharded_without_capture(rank: int, world: int) -> Any:
    """Parts of parameters, and layers left alone."""
    try:
        Training(rank, sharded=True, capture=False)
    except gradscope.InvalidArgumentError as error:
        return str(error)
    return ""


def split_layers(rank: int, world: int) -> Any:
    """Tensor parallelism: no rank holds a layer whole."""
    mesh = init_device_mesh("cpu", (world,))
    model = parallelize_module(net(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    try:
        gradscope.watch(model)
    except gradscope.UnwatchableModelError as error:
        return str(error)
    return ""


def never_called(rank: int, world: int) -> Any:
    """Sharded layers one of which uses the parameters of another that is never called."""
    torch.manual_seed(0)
    bare = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    model = fully_shard(bare)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        for step in range(2):
            generator = torch.Generator().manual_seed(100 * step + rank)
            x = torch.randn(4, 5, 8, generator=generator, dtype=torch.float64)
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return record(scope.report(last=1))


def sharded_without_sync(rank: int, world: int) -> Any:
    """Gradients are left where they are."""
    training = Training(rank, sharded=True)
    training.train(1)
    training.model.set_requires_gradient_sync(False)
    training.loss(1).backward()
    training.step()
    found = training.last()
    training.model.set_requires_gradient_sync(True)
    training.loss(2).backward()
    training.step()
    return found, training.end()


def lines_and_files(rank: int, world: int) -> Any:
    """Each rank asks for lines and a file."""
    training = Training(rank)
    stream = io.StringIO()
    path = f"{os.environ['GRADSCOPE_TEST_FOLDER']}/run.jsonl"
    if training.scope is not None:
        training.scope.log_to(stream)
        training.scope.log_to(path)
    training.train(3)
    training.end()
    dist.barrier()
    with open(path) as file:
        return stream.getvalue().count("\n"), len(file.readlines())


TROUBLES: list[Callable[[int, int], Any]] = [
    ordinary, watched_on_one, watched_late, other_settings, closed_on_one, failing_hooks, failing_layer, skipped_on_one,
    skipped_on_one_of_few, skipped_by_scaler, without_sync, last_without_sync, around_the_wrapper, ignored_by_wrapper,
    not_wrapped, joined, compressed, summed, falsified, looked_aside, two_models, without_capture, without_capture_at_once,
    batch_norm, sharded_scaler, sharded_without_capture, sharded_without_sync, split_layers, never_called, lines_and_files,
    ordinary_again,
]  # fmt: skip


def all_troubles(rank: int, world: int, names: list[str] | None = None, folder: str = "") -> dict[str, Any]:
    """One after another in one set of processes: none may disturb the next."""
    os.environ["GRADSCOPE_TEST_FOLDER"] = folder
    found = {}
    for trouble in TROUBLES:
        if names is None or trouble.__name__ in names:
            found[trouble.__name__] = trouble(rank, world)
            dist.barrier()
    return found


def killed(rank: int, world: int) -> Any:
    """The last rank dies in the middle of training; the others say how and when they learn of it."""
    training = Training(rank)
    training.train(2)
    if rank == world - 1:
        os._exit(1)
    started = time.monotonic()
    try:
        training.train(3, start=2)
    except RuntimeError as error:
        return str(error), time.monotonic() - started, training.end()
    return "nothing was noticed", time.monotonic() - started, training.end()


def killed_after_backward(rank: int, world: int) -> Any:
    """The last rank dies between its backward and what gradscope sends."""
    training = Training(rank)
    training.train(2)
    if rank == world - 1 and training.scope is not None:
        training.scope._session.company._rounds._meet = lambda: os._exit(1)  # type: ignore[union-attr]
    started = time.monotonic()
    try:
        training.train(3, start=2)
    except RuntimeError as error:
        return str(error), time.monotonic() - started, training.end()
    return "nothing was noticed", time.monotonic() - started, training.end()


def averaged_twice(rank: int, world: int) -> Any:
    """A loss over the samples of all ranks, which the wrapper averages once more; and the same without that fault."""
    torch.manual_seed(0)
    bare = nn.Linear(FEATURES, CLASSES)
    model = DistributedDataParallel(bare)
    batch = torch.randn(12, FEATURES), torch.randn(12, CLASSES)

    def mean(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def loop(divisor: int) -> Callable[[Any, Any], None]:
        def step(model: Any, micro_batches: Any) -> None:
            samples = sum(len(x) for x, _ in micro_batches)
            for number, part in enumerate(micro_batches):
                with nullcontext() if number == len(micro_batches) - 1 else model.no_sync():
                    (mean(model, part) * len(part[0]) / (samples * divisor)).backward()

        return step

    gradscope.checks.assert_accumulates(loop(1), model, mean, batch)
    return gradscope.checks.diagnose(loop(world), model, mean, batch).cause


def two_dimensions(rank: int, world: int) -> Any:
    """Replicas of shards, on a mesh of two dimensions."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    bare = net()
    model: Any = _shard(bare, mesh=mesh)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer, gather_norms=True) as scope:
        for step in range(2):
            model(data(rank, step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return record(scope.report(last=1))
