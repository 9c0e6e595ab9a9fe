"""One call of a module without a rule: a recurrent one's closed form, or recomputed sample by sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module, RNNBase
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from gradscope.capture.forward import Forward
from gradscope.capture.kept import Kept
from gradscope.capture.plan import Plan
from gradscope.capture.tagged_rows import TaggedRows
from gradscope.contributions import Contribution, Dense
from gradscope.errors import GradscopeError
from gradscope.moments.leaf import Leaf
from gradscope.rules.packed import PackedRecomputation, sample_of_packed_row
from gradscope.rules.recompute import Recomputation

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder
    from gradscope.capture.recurrent_call import RecurrentCall

#: How far a tagged output gradient may be from its tags times the untagged one.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class RecomputedCall:
    """One call of a module that has no rule and no layers inside it.

    Args:
        recorder: where figures go.
        plan: the module's.
        forward: the model's call that this one is part of.
        kept: ``(args, kwargs)`` of the call.
        outputs: how many output tensors ask for a gradient.
        device: type of the device that it ran on.
        above: whether there are layers inside it: a second pass, for those parameters only that are ``chosen``.
    """

    __slots__ = (
        "above", "autocast", "by_operators", "chosen", "closed", "forward", "grads", "kept", "plan", "recorder", "tagged", "waits"
    )  # fmt: skip

    def __init__(
        self, recorder: Recorder, plan: Plan, forward: Forward, kept: Kept, outputs: int, device: str, *,
        above: bool = False,
    ) -> None:  # fmt: skip
        self.recorder = recorder
        self.plan = plan
        self.forward = forward
        self.kept = kept
        self.grads: list[Tensor | None] = [None] * outputs
        self.tagged: list[TaggedRows | None] = [None] * outputs
        self.waits = False
        self.by_operators = False
        self.above = above
        #: A closed form of the whole module; nothing is run sample by sample then.
        self.closed: RecurrentCall | None = None
        self.chosen: dict[str, Leaf] = {} if above else dict(plan.leaves)
        self.autocast = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))

    def drop(self) -> None:
        """Nothing of this call is needed."""
        self.by_operators = True
        self.kept = Kept(())

    def alias(self, value: Any) -> Any:
        """An output under another name: where one comes from another, hooks on aliases see each one's own share."""
        return value.view_as(value) if isinstance(value, Tensor) and value.requires_grad else value

    def hang(self, outputs: list[Tensor]) -> None:
        """Hooks on the outputs."""
        for which, tensor in enumerate(outputs):
            if tensor.requires_grad:
                tensor.register_hook(self.recorder.shielded(_Numbered(self.on_grad, which)))

    def on_grad(self, which: int, grad: Tensor) -> None:
        """Hook on output number ``which``."""
        recorder = self.recorder
        if recorder.tagging is not None:
            if recorder.tagging is self.forward:
                self._see_tags(which, grad)
            return
        if not recorder.enter(self.forward) or self.by_operators:
            return
        before = self.grads[which]
        self.grads[which] = grad if before is None else before + grad
        if len(self.grads) == 1 and not recorder.more_backwards() and not self.waits:
            self.finish()
        elif not self.waits:
            self.waits = True
            self.forward.waiting.append(self)

    def finish(self) -> None:
        """All gradients are here: recompute."""
        step = self.forward.step
        leaves = {name: leaf for name, leaf in self.chosen.items() if leaf.wanted}
        if step is None or all(grad is None for grad in self.grads):
            return
        try:
            # Read once: a checkpoint gives its tensors out a single time.
            args, kwargs = self.kept.read()
            self.kept = Kept(())
            self._check_tags(args, kwargs)
            found = self._recompute(list(leaves), args, kwargs)
        except _Interacting:
            self.plan.checked.discard(self.forward.graph)
            self.forward.mixed.append(self.plan.name)
            for leaf in leaves.values():
                step.withhold(leaf, "samples interact after this layer", spoiled=True, second_pass=self.above)
            return
        except Exception as error:  # a user's forward may raise anything on single samples; it costs these figures only
            for leaf in leaves.values():
                spoiled = leaf.index in self.forward.interacting
                step.withhold(leaf, self._failed(error), spoiled=spoiled, second_pass=self.above)
            return
        finally:
            self.forward.unsettled |= self.forward.graph not in self.plan.checked
            self.grads = [None] * len(self.grads)
            self.tagged = [None] * len(self.tagged)
            self.kept.release()
            if self.closed is not None:
                self.closed.release()
        for name, leaf in leaves.items():
            uses = self.forward.uses.get(leaf.index, 1)
            dtype = self.autocast[2] if self.autocast[1] else leaf.live.dtype
            step.add(leaf, found[name], self._rule, uses=uses, last=True, dtype=dtype, second_pass=self.above)
            step.of(leaf).assumed |= self.forward.ambiguous or self.forward.graph not in self.plan.checked

    @property
    def _rule(self) -> str:
        if self.closed is not None:
            return "recurrent"
        return f"recomputed {self.plan.name or 'the whole model'}" if self.above else "recomputed"

    def _failed(self, error: BaseException) -> str:
        if self.above:
            return f"a second pass over {self.plan.name or 'the whole model'} failed: {_first_line(error)}"
        if self.closed is not None:
            return f"the rule {self._rule!r} failed: {type(error).__name__}: {_first_line(error)}"
        return f"{self.plan.reason}, and recomputing it failed: {_first_line(error)}"

    def _check_tags(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        packed = self._packed(args, kwargs)
        if packed is not None:
            self._check_packed(packed[0])
            return
        tags, n, batch_dim = self.forward.tags, self.forward.samples, self.recorder.options.batch_dim
        read = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if all(sample_dim(self.plan.module, tensor, n, batch_dim) is None for tensor in read):
            raise GradscopeError("it runs once for all samples")
        if tags is None:
            return
        for which, (plain, tagged) in enumerate(zip(self.grads, self.tagged, strict=True)):
            if plain is None or tagged is None:
                continue
            dim = self._dim(which, plain)
            if dim is None:
                raise GradscopeError("its output has no batch dimension")
            tolerance = TOLERANCE.get(self.forward.precision(plain.dtype), 1e-3)
            fits = tagged.fits(plain, tags, dim, tolerance)
            if fits is None:
                return
            if not fits:
                raise _Interacting
        self.plan.checked.add(self.forward.graph)

    def _see_tags(self, which: int, grad: Tensor) -> None:
        seen = self.tagged[which]
        if seen is None:
            dim = self._dim(which, grad)
            # A sequence's last dimension holds features, unless samples lie along it.
            rows = max(1, grad.dim() - 1) if dim is None else max(dim + 1, grad.dim() - 1)
            self.tagged[which] = TaggedRows(grad, rows, self.forward.samples, self.recorder.generator)
        else:
            seen.add(grad)

    def _dim(self, which: int, tensor: Tensor) -> int | None:
        """Where the samples lie in an output."""
        if self.closed is not None:
            return self.closed.sample_dim(which, tensor)
        return sample_dim(self.plan.module, tensor, self.forward.samples, self.recorder.options.batch_dim)

    def _packed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[PackedSequence, Any] | None:
        """A recurrent module's packed sequence, which has rows and no dimension of samples, and its initial state."""
        if not isinstance(self.plan.module, RNNBase):
            return None
        given = (*as_positional(self.plan.module, args, kwargs), None)
        return (given[0], given[1]) if isinstance(given[0], PackedSequence) else None

    def _check_packed(self, packed: PackedSequence) -> None:
        tags, plain, tagged = self.forward.tags, self.grads[0], self.tagged[0]
        if tags is None or plain is None or tagged is None:
            return
        row_tags = tags[sample_of_packed_row(packed).to(tags.device)]
        if not tagged.fits_rows(plain, row_tags, TOLERANCE.get(plain.dtype, 1e-3)):
            raise _Interacting
        self.plan.checked.add(self.forward.graph)

    def _recompute(self, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Contribution]:
        if self.closed is not None:
            weights = {name: leaf.live.detach() for name, leaf in self.plan.leaves.items()}
            return self.closed.contributions(weights, as_positional(self.plan.module, args, kwargs), self.grads, names)
        found = self._recomputed(names, args, kwargs)
        return {name: Dense(values) for name, values in found.items()}

    def _recomputed(self, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        packed = self._packed(args, kwargs)
        if packed is not None and isinstance(self.plan.module, RNNBase):
            return PackedRecomputation(
                module=self.plan.module,
                parameters={name: self.chosen[name].live.detach() for name in names},
                packed=packed[0],
                state=packed[1],
                grads=[None if grad is None else grad.detach() for grad in self.grads],
                samples=self.forward.samples,
                autocast=self.autocast,
            ).contributions()
        module, n = self.plan.module, self.forward.samples
        batch_dim = self.recorder.options.batch_dim
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        grad_dims = []
        for grad in self.grads:
            dim = 0 if grad is None else sample_dim(module, grad, n, batch_dim)
            if dim is None:
                raise GradscopeError("its output has no batch dimension")
            grad_dims.append(dim)
        return Recomputation(
            module=module,
            parameters={name: self.chosen[name].live.detach() for name in names},
            args=args,
            kwargs=kwargs,
            arg_dims=[sample_dim(module, tensor, n, batch_dim) for tensor in tensors],
            grads=[None if grad is None else grad.detach() for grad in self.grads],
            grad_dims=grad_dims,
            autocast=self.autocast,
            tied=self.above,
        ).contributions()


class _Numbered:
    __slots__ = ("function", "number")

    def __init__(self, function: Callable[[int, Tensor], None], number: int) -> None:
        self.function, self.number = function, number

    def __call__(self, grad: Tensor) -> None:
        self.function(self.number, grad)


class _Interacting(Exception):  # noqa: N818 - never leaves this file
    """Tags show that samples interact."""


def sample_dim(module: Module, tensor: Tensor, n: int, batch_dim: int) -> int | None:
    """Where the samples lie in an input or output of a module that is not known to gradscope; None where they do not."""
    dims = [dim for dim, size in enumerate(tensor.shape) if size == n]
    first = batch_dim
    if (getattr(module, "batch_first", None) is False and tensor.dim() > 2) or (
        isinstance(module, RNNBase) and tensor.dim() == 3 and tensor.shape[0] != n
    ):
        first = 1
    elif getattr(module, "batch_first", None) is True:
        first = 0
    return min(dims, key=lambda dim: (dim != first, dim), default=None)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def as_positional(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The call's arguments with keywords put into their places, as rules read them."""
    if not kwargs:
        return args
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args
