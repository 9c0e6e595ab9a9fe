"""One call of a recurrent module, as its closed form reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from gradscope.capture.kept import Kept, kept_plainly
from gradscope.capture.plan import Plan
from gradscope.contributions import Contribution
from gradscope.rules.recurrent import Form, Lengths, Recurrence, find_form

#: In these all operators of a recurrent layer compute alike.
WHOLE = {torch.float32, torch.float64}


class RecurrentCall:
    """One call whose layout is the module's own: samples along the dimension that torch calls the batch.

    Args:
        form: how the module is built.
        outputs: what it gave out; not held where something else decides what is (activation checkpoints).
        half: the half precision that it was computed in, or None.
    """

    __slots__ = ("_outputs", "form", "half")

    def __init__(self, form: Form, outputs: Sequence[Tensor], half: torch.dtype | None = None) -> None:
        self.form = form
        self.half = half
        self._outputs = [Kept((output,)) for output in outputs] if all(map(kept_plainly, outputs)) else []

    @classmethod
    def of(cls, plan: Plan, args: tuple[Any, ...], outputs: Sequence[Tensor], samples: int) -> RecurrentCall | None:
        """The call; None where it has no closed form, or a layout that needs another look.

        Args:
            plan: the module's.
            args: the call's arguments, by position.
            outputs: what it gave out.
            samples: n.
        """
        form = find_form(plan.module)
        if form is None or any(leaf.sharded for leaf in plan.leaves.values()):
            return None
        if not _usual(form, args[0], samples):
            return None
        x = args[0].data if isinstance(args[0], PackedSequence) else args[0]
        own = plan.module._parameters
        held = [leaf.live for leaf in (plan.leaves.get(name) for name in form.all_names) if leaf is not None]
        if any(one is not own[name] for one, name in zip(held, form.all_names, strict=False)):
            return None
        if len(held) != len(plan.leaves) or len(held) != len(form.all_names) or not _plain(x, outputs[0], *held):
            return None
        dtypes = {one.dtype for one in (x, outputs[0], *held)}
        if len(dtypes) == 1 and dtypes <= WHOLE and not torch.is_autocast_enabled(x.device.type):
            return cls(form, outputs)
        half = outputs[0].dtype
        return cls(form, outputs, half) if form.fused and x.is_cpu and half is torch.bfloat16 else None

    def release(self) -> None:
        """Let go of what it gave out."""
        self._outputs = []

    def intact(self) -> bool:
        """Whether nothing that it gave out was changed in place: gradients of what was there before pass no hook then."""
        try:
            for kept in self._outputs:
                kept.read()
        except RuntimeError:
            return False
        return True

    def sample_dim(self, which: int, tensor: Tensor) -> int | None:
        """Where the samples lie in output number ``which``; None in packed rows."""
        if not self.form.sequence:
            return 0
        if which:
            return 1
        return self.form.batch_dim if tensor.dim() == 3 else None

    def contributions(
        self, weights: Mapping[str, Tensor], args: tuple[Any, ...], grads: Sequence[Tensor | None], asked: Sequence[str]
    ) -> dict[str, Contribution]:
        """``hᵢ`` of the parameters that are asked for.

        Args:
            weights: all parameters, by local name.
            args: the call's arguments, by position.
            grads: what came back for each output.
            asked: local names.
        """
        given, states = (*args, None)[:2]
        device = next(iter(weights.values())).device.type
        lengths = Lengths.of(given) if isinstance(given, PackedSequence) else None
        states = states if isinstance(states, (tuple, list)) else (states,)
        autocast = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with torch.no_grad(), autocast:
            weights = {name: self._as_computed(weight) for name, weight in weights.items()}
            x, output, grad = (self._rows(rows, lengths) for rows in (given, self._read(), grads[0]))
            if x is None:
                raise RuntimeError("a recurrent module read nothing")
            # A cell's first output is its only step, which a sequence gives out a second time, as its last state.
            last = grads[1:] if self.form.sequence else (None, *grads[1:])
            hidden, cell = (self._states(state, lengths) for state in (*states, None)[:2])
            hidden_grad, cell_grad = (self._states(state, lengths) for state in (*last, None)[:2])
            return Recurrence(
                self.form, weights, x, output, hidden, cell, grad, hidden_grad, cell_grad, lengths
            ).contributions(asked)

    def _read(self) -> Tensor | None:
        if not self._outputs:
            return None
        try:
            output: Tensor = self._outputs[0].read()[0]
        except RuntimeError:
            # Changed in place since: it is computed again.
            return None
        return output

    def _as_computed(self, tensor: Tensor) -> Tensor:
        """The numbers that the module computed with, where that was half precision in single precision."""
        return tensor if self.half is None else tensor.to(self.half).float()

    def _rows(self, given: Tensor | PackedSequence | None, lengths: Lengths | None) -> Tensor | None:
        """Time first, samples second."""
        if given is None:
            return None
        rows = given.data if isinstance(given, PackedSequence) else given
        rows = self._as_computed(rows.detach())
        if lengths is not None:
            return lengths.spread(rows)
        if not self.form.sequence:
            return rows.unsqueeze(0)
        return rows.transpose(0, 1) if self.form.batch_dim == 0 else rows

    def _states(self, states: Tensor | None, lengths: Lengths | None) -> Tensor | None:
        if states is None:
            return None
        states = self._as_computed(states.detach())
        states = states if self.form.sequence else states.unsqueeze(0)
        return states if lengths is None else lengths.sort(states)


def _plain(first: Tensor, *others: Tensor) -> bool:
    """Whether these are ordinary tensors on one device."""
    return all(
        one.layout is torch.strided and not hasattr(one, "to_local") and one.device == first.device
        for one in (first, *others)
    )  # fmt: skip


def _usual(form: Form, given: Tensor | PackedSequence, samples: int) -> bool:
    """Whether samples lie where torch's own batch does."""
    if isinstance(given, PackedSequence):
        return form.sequence and int(given.batch_sizes[0]) == samples
    return given.dim() == (3 if form.sequence else 2) and given.shape[form.batch_dim] == samples
