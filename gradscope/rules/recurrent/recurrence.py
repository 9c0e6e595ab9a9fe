"""One call of a recurrent module, taken back through its layers once for all samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.contributions import Contribution
from gradscope.rules.recurrent.form import Form
from gradscope.rules.recurrent.lengths import Lengths
from gradscope.rules.recurrent.run import Run


@dataclass(frozen=True, slots=True, eq=False)
class Recurrence:
    """One call, and what came back. Time is the first dimension, samples the second; all without a graph.

    Contributions add up over time: ``h_W = Σₜ dₜ xₜᵀ``, with ``d`` the gradient of what the gates received. Samples do not meet
    in a recurrent layer, so that one pass back through time over the whole batch gives every sample's ``d``.

    Attributes:
        form: how the module is built.
        weights: its parameters, by local name.
        x: what it read, ``[T, n, d]``.
        output: what it gave out, ``[T, n, directions·p]``; None where that is to be computed again.
        hidden: first hidden states, ``[layers·directions, n, p]``; None for zeros.
        cell: an LSTM's first cell states, ``[layers·directions, n, h]``; None for zeros.
        grad: gradient of the output; None where nothing came back.
        hidden_grad: of the last hidden states; None likewise.
        cell_grad: of the last cell states; None likewise.
        lengths: of the sequences; None where all are equal.
    """

    form: Form
    weights: Mapping[str, Tensor]
    x: Tensor
    output: Tensor | None
    hidden: Tensor | None
    cell: Tensor | None
    grad: Tensor | None
    hidden_grad: Tensor | None
    cell_grad: Tensor | None
    lengths: Lengths | None = None

    def contributions(self, asked: Sequence[str]) -> dict[str, Contribution]:
        """``hᵢ`` of the parameters that are asked for, by local name."""
        suffixes = self.form.suffixes
        read = self._forward()
        described: dict[str, Contribution] = {}
        grad = torch.zeros_like(read[-1]) if self.grad is None else self.grad
        for layer in range(len(suffixes) - 1, -1, -1):
            runs = self._runs(layer, read[layer], read[layer + 1], grad)
            returned = [self.form.back(run) for run in runs]
            for end, run, back in zip(suffixes[layer], runs, returned, strict=True):
                own = [name for name in self.form.names if f"{name}{end}" in asked]
                found = back.describe(run, None if self.lengths is None else self.lengths.order, own)
                described.update({f"{name}{end}": found[name] for name in own})
            if not any(name.endswith(end) for ends in suffixes[:layer] for end in ends for name in asked):
                break
            shares = [back.below(run) for run, back in zip(runs, returned, strict=True)]
            grad = shares[0] if len(shares) == 1 else shares[0].add_(shares[1])
        return described

    def _runs(self, layer: int, read: Tensor, left: Tensor, grad: Tensor) -> list[Run]:
        runs = []
        ends = self.form.suffixes[layer]
        parts = zip(left.chunk(len(ends), 2), grad.chunk(len(ends), 2), strict=True)
        for direction, (end, (after, above)) in enumerate(zip(ends, parts, strict=True)):
            place, reverse = layer * len(ends) + direction, direction == 1
            cell, hidden, cell_grad, hidden_grad = (
                None if states is None else states[place]
                for states in (self.cell, self.hidden, self.cell_grad, self.hidden_grad)
            )
            runs.append(
                Run(
                    weights={name: self.weights[f"{name}{end}"] for name in self.form.names},
                    x=read,
                    before=self._before(after, hidden, reverse),
                    after=after,
                    cell=cell,
                    grad=self._with_last(above, hidden_grad, reverse),
                    cell_grad=cell_grad,
                    absent=None if self.lengths is None else self.lengths.absent,
                    reverse=reverse,
                )
            )
        return runs

    def _before(self, after: Tensor, hidden: Tensor | None, reverse: bool) -> Tensor:
        """The hidden state that each step read."""
        before = torch.empty_like(after, memory_format=torch.contiguous_format)
        first, rest, earlier = (-1, slice(-1), slice(1, None)) if reverse else (0, slice(1, None), slice(-1))
        before[first] = 0.0 if hidden is None else hidden
        before[rest] = after[earlier]
        if reverse and hidden is not None and self.lengths is not None:
            # Backwards, a sequence begins at its own last step.
            before[self.lengths.last, torch.arange(len(hidden), device=hidden.device)] = hidden
        return before

    def _with_last(self, grad: Tensor, last: Tensor | None, reverse: bool) -> Tensor:
        """Gradient of the hidden states, the last one's own included."""
        if last is None:
            return grad.contiguous()
        grad = grad.clone(memory_format=torch.contiguous_format)
        if reverse:
            grad[0] += last
        elif self.lengths is None:
            grad[-1] += last
        else:
            grad[self.lengths.last, torch.arange(len(last), device=last.device)] += last
        return grad

    def _forward(self) -> list[Tensor]:
        """What each layer read, and behind it what the last one left."""
        read, layers = [self.x], len(self.form.suffixes)
        for layer in range(layers):
            known = self.output if layer == layers - 1 else None
            read.append(self._layer(layer, read[-1]) if known is None else known)
        return read

    def _layer(self, layer: int, x: Tensor) -> Tensor:
        """Torch's own forward of one layer."""
        form, ends = self.form, self.form.suffixes[layer]
        flat = [self.weights[f"{name}{end}"] for end in ends for name in form.names]
        places = slice(layer * len(ends), (layer + 1) * len(ends))
        states = [
            self.x.new_zeros(len(ends), self.x.shape[1], size) if given is None else given[places].contiguous()
            for given, size in zip((self.hidden, self.cell), self._sizes(flat[1]), strict=False)
        ]
        state = tuple(states) if len(states) == 2 else states[0]
        settings = ("bias_ih" in form.names, 1, 0.0, False, len(ends) == 2)
        with warnings.catch_warnings():
            # That one layer's weights are not a block of memory of their own is nothing that the user did.
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
            if self.lengths is None:
                output: Tensor = form.kernel(x, state, flat, *settings, False)[0]
                return output
            rows = form.kernel(self.lengths.pack(x), self.lengths.sizes, state, flat, *settings)[0]
        return self.lengths.spread(rows)

    def _sizes(self, weight: Tensor) -> list[int]:
        """Features of each state."""
        return [weight.shape[1], weight.shape[0] // 4][: self.form.states]
