"""The inner backward in which every sample's gradient carries its own mark: random signs, or tags that tell samples apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import Module

from gradscope.capture.forward import Forward
from gradscope.contributions.precision import squared_norm
from gradscope.moments.leaf import Leaf
from gradscope.statistics.random_signs import balanced_signs

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder


def distinct_tags(samples: int, generator: torch.Generator) -> Tensor:
    """A zero-sum vector of distinct numbers in uniformly random order, float64 ``[n]``.

    Alternating signs and sizes from 1 to 2. Like random signs it makes ``Σ rᵢhᵢ`` an unbiased measure of noise; unlike them it
    tells every sample from every other.
    """
    if samples == 1:
        return torch.ones(1, dtype=torch.float64)
    size = 1 + torch.arange(samples, dtype=torch.float64) / samples
    size[1::2] *= -1
    return (size - size.mean())[torch.randperm(samples, generator=generator)]


class OutputHook:
    """Hook on one output of the watched model, or on the last tensor in it that has a batch dimension.

    Args:
        recorder: where figures go.
        forward: the model's call.
        which: number of this output.
        output_nr: which output of its autograd node the tensor is.
        dim: where its samples lie.
    """

    __slots__ = ("dim", "forward", "output_nr", "recorder", "which")

    def __init__(self, recorder: Recorder, forward: Forward, which: int, output_nr: int, dim: int) -> None:
        self.recorder = recorder
        self.forward = forward
        self.which = which
        self.output_nr = output_nr
        self.dim = dim

    def on_node(self, grads: Sequence[Tensor | None]) -> None:
        """The same as a pre-hook of the node."""
        grad = grads[self.output_nr]
        if grad is not None:
            self.on_grad(grad)

    def on_grad(self, grad: Tensor) -> None:
        """The gradient of this output is here."""
        recorder, forward = self.recorder, self.forward
        if recorder.tagging is not None:
            if forward.starts_at == self.which:
                # The inner backward starts here: this is what it was given, not what came through others.
                forward.starts_at = None
            elif recorder.tagging is forward and forward.tags is not None:
                # Reached through an output that comes after this one; untagged, that part is this much.
                part = grad / self._along(forward.tags, grad)
                before = forward.through.get(self.which)
                forward.through[self.which] = part if before is None else before + part
            return
        if not recorder.enter(forward) or not recorder.wants_tags(forward):
            return
        direct = grad
        through = forward.through.pop(self.which, None)
        if through is not None:
            direct = grad - through
            if bool(direct.norm() <= 64 * torch.finfo(grad.dtype).eps * grad.norm()):
                return
        self._run(direct)

    def _along(self, tags: Tensor, grad: Tensor) -> Tensor:
        shape = [1] * grad.dim()
        shape[self.dim] = -1
        return tags.to(grad.device, grad.dtype).reshape(shape)

    def _run(self, grad: Tensor) -> None:
        recorder, forward = self.recorder, self.forward
        if forward.tags is None:
            # Signs leave out one of an odd number of samples, whose share through a later output could not be told.
            forward.distinct = forward.wants_tags or recorder.guarding or forward.outputs > 1
            draw = distinct_tags if forward.distinct else balanced_signs
            forward.tags = recorder.shared_tags(forward)
            if forward.tags is None:
                forward.tags = draw(forward.samples, recorder.generator)
        leaves = recorder.tagged_leaves(forward)
        if not leaves:
            return
        node: Any = torch._C._current_autograd_node()
        recorder.tagging = forward
        forward.starts_at = self.which
        try:
            with user_hooks_lifted(leaves), retained_grads_kept(forward), state_kept(recorder.model, forward, grad):
                found = torch.autograd.grad(
                    [GradientEdge(node, self.output_nr)],
                    [leaf.parameter for leaf in leaves],
                    [self._along(forward.tags, grad) * grad],
                    retain_graph=True,
                    allow_unused=True,
                )
        except RuntimeError as error:
            # Reentrant checkpoints and compiled graphs refuse a second backward; the run itself must not notice.
            forward.tags = None
            forward.tag_error = str(error).strip().splitlines()[0][:200]
            return
        finally:
            recorder.tagging = None
            forward.starts_at = None
        self._store(leaves, found)
        if forward.outputs == 1 and recorder.same_samples is None and not recorder.more_backwards():
            settle_signed(forward, recorder.leaves)

    def _store(self, leaves: Sequence[Leaf], found: Sequence[Tensor | None]) -> None:
        for leaf, signed in zip(leaves, found, strict=True):
            if signed is None:
                continue
            before = self.forward.signed.get(leaf.index)
            self.forward.signed[leaf.index] = signed if before is None else before + signed


def settle_signed(forward: Forward, leaves: Sequence[Leaf]) -> None:
    """Turn the tagged gradients into numbers and let go of them; all of the model's outputs have been reached."""
    step = forward.step
    if step is None or forward.tags is None:
        forward.signed.clear()
        return
    for index, signed in forward.signed.items():
        leaf, record = leaves[index], step.of(leaves[index])
        record.signed_sum = squared_norm(signed)
        if leaf.probe is not None:
            record.signed_probe = leaf.probe.of(signed)
    step.signs = forward.tags
    forward.signed.clear()


@contextmanager
def state_kept(model: Module, forward: Forward, grad: Tensor) -> Iterator[None]:
    """What runs once more must not show: random numbers that a backward draws, statistics that a checkpoint updates again."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if forward.packs else []
    devices = [grad.device] if grad.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        # Also where the inner backward was refused halfway.
        for buffer, before in buffers:
            # Past the version counter: whether autograd may still read it is not changed by putting it back.
            buffer.data.copy_(before)


@contextmanager
def retained_grads_kept(forward: Forward) -> Iterator[None]:
    """``retain_grad()`` adds up whatever passes; what the inner backward passes is not the user's."""
    outputs = [tensor for tensor in (ref() for ref in forward.seen) if tensor is not None and tensor.retains_grad]
    grads = [tensor.grad for tensor in outputs]
    try:
        yield
    finally:
        for tensor, grad in zip(outputs, grads, strict=True):
            tensor.grad = grad


def register_first(tensor: Tensor, hook: Callable[..., Any]) -> Any:
    """Register a hook that runs before those that the tensor has already."""
    earlier = dict(tensor._backward_hooks) if tensor._backward_hooks else {}
    handle = tensor.register_hook(hook)
    hooks = tensor._backward_hooks
    if earlier and hooks is not None:
        newest = {key: value for key, value in hooks.items() if key not in earlier}
        hooks.clear()
        hooks.update(newest)
        hooks.update(earlier)
    return handle


class user_hooks_lifted:  # noqa: N801 - used as a context manager, like those of torch
    """Leaf hooks do not run in the inner backward: ours would count it, and the user's may act on what they see."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = leaves
        self.saved: list[tuple[Any, dict[int, Any]]] = []

    def __enter__(self) -> None:
        for leaf in self.leaves:
            hooks = leaf.parameter._backward_hooks
            if hooks:
                self.saved.append((hooks, dict(hooks)))
                hooks.clear()

    def __exit__(self, *exc: object) -> None:
        for hooks, saved in self.saved:
            hooks.update(saved)
