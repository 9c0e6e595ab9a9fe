"""The inner backward in which every sample's gradient carries its own mark: random signs, or tags that tell samples apart."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import Module

from gradscope.capture.forward import Forward
from gradscope.capture.hook import Hook, hang, hooks_of_others
from gradscope.contributions.precision import squared_norm
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import MicroStep
from gradscope.random_numbers import random_state_kept
from gradscope.statistics.random_signs import balanced_signs

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder


def distinct_tags(samples: int, generator: torch.Generator) -> Tensor:
    """A zero-sum vector of distinct numbers in uniformly random order, float64 ``[n]``.

    Alternating signs and sizes from 1 to 2. Like random signs it makes ``Σ rᵢhᵢ`` an unbiased measure of noise; unlike them it
    tells every sample from every other.
    """
    if samples == 1:
        return torch.ones(1, dtype=torch.float64, device="cpu")
    size = 1 + torch.arange(samples, dtype=torch.float64, device="cpu") / samples
    size[1::2] *= -1
    return (size - size.mean())[torch.randperm(samples, generator=generator, device="cpu")]


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
        others = "" if recorder.options.second_pass else hooks_of_others(recorder.model, forward.hung)
        if others:
            forward.tag_error = f"a backward hook of your own on {others} would run once more; second_pass=True lets it"
            return
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
        # Where nothing can add to them any more, sums become numbers as they come: all at once would be one more gradient.
        alone = forward.outputs == 1 and recorder.same_samples is None and not recorder.more_backwards()
        alone = alone and not forward.signed
        sums = SignedSums(leaves, reduce=alone)
        recorder.tagging = forward
        forward.starts_at = self.which
        try:
            with sums, retained_grads_kept(forward), state_kept(recorder.model, forward, grad):
                torch.autograd.grad(
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
        for index, signed in sums.whole.items():
            before = forward.signed.get(index)
            forward.signed[index] = signed if before is None else before + signed
        if alone and forward.step is not None:
            sums.hand_over(forward.step)
            forward.step.signs = forward.tags


def settle_signed(forward: Forward, leaves: Sequence[Leaf]) -> None:
    """Turn the tagged gradients into numbers and let go of them; all of the model's outputs have been reached."""
    step = forward.step
    if step is None or forward.tags is None:
        forward.signed.clear()
        return
    for index, signed in forward.signed.items():
        record = step.of(leaves[index])
        record.signed_sum, record.signed_probe = _numbers(leaves[index], signed)
    step.signs = forward.tags
    forward.signed.clear()


def _numbers(leaf: Leaf, signed: Tensor) -> tuple[Tensor, Tensor | None]:
    return squared_norm(signed), None if leaf.probe is None else leaf.probe.of(signed)


@contextmanager
def state_kept(model: Module, forward: Forward, grad: Tensor) -> Iterator[None]:
    """What runs once more must not show: random numbers that a backward draws, statistics that a checkpoint updates again."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if forward.packs else []
    try:
        with random_state_kept(grad.device):
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


def hang_first(tensor: Tensor, hook: Hook) -> weakref.ref[OrderedDict[int, Any]]:
    """The same for a hook that stays as long as the tensor; returns what ``hang`` does."""
    hooks = tensor._backward_hooks
    if not hooks:
        return hang(tensor, hook)
    # torch goes through them in the order in which they came in, whatever an OrderedDict was told since.
    earlier = dict(hooks)
    hooks.clear()
    hooks[id(hook)] = hook
    hooks.update(earlier)
    return weakref.ref(hooks)  # type: ignore[arg-type]


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


class SignedSums(user_hooks_lifted):
    """Takes ``Σ rᵢhᵢ`` of each parameter in the place of the leaf hooks, while the inner backward runs.

    Args:
        leaves: the parameters.
        reduce: make numbers of each sum as it comes, and let go of it.

    Attributes:
        whole: per parameter index, sums that were not reduced.
        numbers: per parameter index, ``‖Σ rᵢhᵢ‖²`` and ``⟨Σ rᵢhᵢ, R⟩``.
    """

    def __init__(self, leaves: Sequence[Leaf], *, reduce: bool) -> None:
        super().__init__(leaves)
        self.reduce = reduce
        self.whole: dict[int, Tensor] = {}
        self.numbers: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        super().__enter__()
        self._handles = [leaf.parameter.register_hook(partial(self._take, leaf)) for leaf in self.leaves]

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*exc)

    def hand_over(self, step: MicroStep) -> None:
        """Give the numbers to the micro-step."""
        for leaf in self.leaves:
            if leaf.index in self.numbers:
                record = step.of(leaf)
                record.signed_sum, record.signed_probe = self.numbers[leaf.index]

    def _take(self, leaf: Leaf, signed: Tensor) -> Tensor | None:
        if not self.reduce:
            self.whole[leaf.index] = signed
            return None
        self.numbers[leaf.index] = _numbers(leaf, signed)
        # autograd keeps what a hook returns until the end: zeros that take no room.
        return None if signed.is_sparse else signed.new_zeros(()).expand_as(signed)
