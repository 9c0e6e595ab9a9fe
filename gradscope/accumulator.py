"""Micro-steps into one effective minibatch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscope.contributions.precision import squared_norm
from gradscope.coverage import STATUSES, Coverage
from gradscope.judgement import Judged, Numbers, allowed, device_numbers, differs, judge
from gradscope.moments.leaf import Arrival, Leaf
from gradscope.moments.microstep import MicroStep, coarsest
from gradscope.statistics.elementwise import elementwise_moments
from gradscope.statistics.preconditioned import adam_preconditioner, preconditioned_sums
from gradscope.window import ParameterSums, Window


@dataclass(frozen=True, slots=True, eq=False)
class AdamState:
    """What an Adam-like optimizer knows of one parameter: ``v``, the step count, ``β₂`` and ``ε``."""

    second_moment: Tensor
    step: float
    beta2: float
    eps: float


class OpenWindow:
    """The effective minibatch that is being filled.

    Args:
        leaves: all parameters.
        moments: whether elementwise moments are wanted.
    """

    def __init__(self, leaves: Sequence[Leaf], *, moments: bool) -> None:
        self.leaves = leaves
        self.moments = moments
        self.notices: list[str] = []
        #: Parameters in which the last guard window saw a fault that the others cannot see, and what it was.
        self.distrusted: dict[int, str] = {}
        #: Those that were trusted before: the next window looks again.
        self.suspects: set[int] = set()
        #: Each parameter's last squared differences, one per window.
        self.differences: dict[int, deque[float]] = {}
        self.begin()

    def begin(self) -> None:
        """Forget everything: an optimizer has stepped, or the gradients were cleared."""
        self.steps: list[MicroStep] = []
        self.grad_sq: dict[int, Tensor] = {}
        self.grads: dict[int, Tensor] = {}
        self.problems: dict[int, str] = {}
        self.arrived: set[int] = set()
        for leaf in self.leaves:
            leaf.version = None

    def close_down(self) -> None:
        """Begin anew with fresh probes."""
        self.begin()
        self.notices = []
        for leaf in self.leaves:
            leaf.open_window()

    # -- filling ------------------------------------------------------------------------------------------------------

    def add(
        self,
        arrivals: Mapping[int, Arrival],
        restarted: set[int],
        touched: set[int],
        steps: Sequence[MicroStep],
        orphan: bool,
    ) -> None:
        """One backward is over.

        Args:
            arrivals: what it added to the parameters.
            restarted: parameters whose ``.grad`` was None before it.
            touched: parameters whose ``.grad`` was changed by someone else since the last backward.
            steps: the micro-steps that it ended.
            orphan: whether it reached no forward of the model at all.
        """
        again = restarted & self.arrived
        if again and again == self.arrived & set(arrivals):
            # A step that the GradScaler skipped, or zero_grad: what came before is in no gradient any more.
            lost = len(self.steps)
            self.begin()
            self.notices.append(
                f"gradients were cleared before the optimizer stepped: {lost} micro-step{'s' * (lost != 1)} left out"
            )
        else:
            for index in again:
                self.problems[index] = "its .grad was cleared inside the window, while others were kept"
        for index in touched - again:
            self.problems[index] = (
                "its .grad was changed between micro-steps (clipped or unscaled inside the window?), so that it is no "
                "longer the sum of what the samples added"
            )
        if orphan:
            for index in arrivals:
                self.problems[index] = "a backward that belongs to no sample added to it (a penalty on the weights?)"
        # A backward for the inputs alone (saliency) reaches no parameter: its samples are in no gradient.
        self.steps.extend(step for step in steps if step.arrived)
        self.arrived |= set(arrivals)
        for index, arrival in arrivals.items():
            self._note_grad(self.leaves[index], arrival)

    def _note_grad(self, leaf: Leaf, arrival: Arrival) -> None:
        grad = leaf.parameter.grad
        first = leaf.index not in self.grad_sq
        if grad is None:
            if not first:
                self.problems[leaf.index] = "its .grad is gone after backward (an optimizer that steps inside it?)"
            self.grad_sq[leaf.index] = arrival.squared_norm
            if self.moments and arrival.fresh is not None:
                self.grads[leaf.index] = _dense(arrival.fresh)
            return
        leaf.version = grad._version
        if leaf.baseline is not None:
            grad = grad.detach() - leaf.baseline
        exact = first and arrival.times == 1 and leaf.baseline is None and grad.dtype == arrival.dtype
        self.grad_sq[leaf.index] = arrival.squared_norm if exact else squared_norm(grad.detach())
        if self.moments:
            self.grads[leaf.index] = _dense(grad.detach()).clone()

    # -- closing ------------------------------------------------------------------------------------------------------

    def close(self, index: int, *, scale: float, adam: Mapping[int, AdamState]) -> Window:
        """The window, from all that was added.

        Args:
            index: its number.
            scale: what the loss was multiplied with (GradScaler); divided out of every figure.
            adam: what the optimizer knows, by parameter index; may be empty.
        """
        weights, ids = self._weights()
        share = weights / weights.sum()
        v2 = float(share.square().sum())
        judged = self._judge()
        self._remember(index, judged)
        coverage: dict[str, Coverage] = {}
        sums: dict[str, ParameterSums] = {}
        for leaf in self.leaves:
            found = self._cover(leaf, judged.get(leaf.index))
            coverage[leaf.info.name] = found
            if found.measured and leaf.index in self.grad_sq:
                parts = judged[leaf.index]
                sums[leaf.info.name] = self._sums(leaf, parts, found, scale, v2, adam.get(leaf.index))
        return Window(
            index=index,
            samples=int(weights.numel()),
            micro_steps=len(self.steps),
            weight_sq_sum=v2,
            parameters=sums,
            coverage=coverage,
            weights=share,
            ids=ids,
            held_bytes=max((step.peak_bytes for step in self.steps), default=0),
            notices=tuple(dict.fromkeys([*self.notices, *(n for step in self.steps for n in step.notices)])),
        )

    def _weights(self) -> tuple[Tensor, tuple[str, ...] | None]:
        weights = [
            torch.ones(step.samples, dtype=torch.float64) if step.weights is None else step.weights
            for step in self.steps
        ]
        if all(step.ids is None for step in self.steps):
            return torch.cat(weights), None
        ids = [name for step in self.steps for name in (step.ids or [""] * step.samples)]
        return torch.cat(weights), tuple(ids)

    def _judge(self) -> dict[int, list[Judged | None]]:
        """Every parameter's verdicts, one per micro-step; None where nothing reached it."""
        present = [[i for i, m in step.measured.items() if m.arrival is not None] for step in self.steps]
        tables = [
            device_numbers([step.measured[i] for i in indices], step)
            for step, indices in zip(self.steps, present, strict=True)
        ]
        if not tables:
            return {}
        # One transfer for the whole window.
        rows = iter(torch.cat(tables).tolist())
        verdicts: dict[int, list[Judged | None]] = {i: [None] * len(self.steps) for indices in present for i in indices}
        for k, (step, indices) in enumerate(zip(self.steps, present, strict=True)):
            numbers = {i: Numbers(*next(rows)) for i in indices}
            model_sq = sum(found.fresh_sq for found in numbers.values())
            lowest = coarsest(*(step.measured[i].dtype for i in indices))
            for i, found in numbers.items():
                verdicts[i][k] = judge(step.measured[i], found, step, model_sq, lowest)
        return verdicts

    def _remember(self, window: int, judged: Mapping[int, Sequence[Judged | None]]) -> None:
        """A fault that only a guard sees holds until a guard finds the parameter right."""
        for index, parts in judged.items():
            faults = [part.coverage.reason for part in parts if part is not None and part.by_guard]
            if faults:
                self.suspects |= {index} - set(self.distrusted)
                self.distrusted[index] = f"{faults[0]} (found in window {window})"
            elif any(index in step.measured and step.measured[index].built is not None for step in self.steps):
                self.distrusted.pop(index, None)

    def _cover(self, leaf: Leaf, parts: list[Judged | None] | None) -> Coverage:
        if leaf.ignored:
            return Coverage("not measured", reason="ignored, as asked")
        if not leaf.parameter.requires_grad:
            return Coverage("frozen")
        if leaf.index not in self.arrived:
            return Coverage("no gradient")
        if leaf.index in self.problems:
            return Coverage("not measured", reason=self.problems[leaf.index])
        known = [part.coverage for part in parts or () if part is not None]
        if not known:
            return Coverage("not measured", reason="its gradient came without a forward that was seen")
        worst = max(known, key=lambda one: STATUSES.index(one.status))
        if worst.measured and worst.status != "estimated" and leaf.index in self.distrusted:
            return Coverage("mismatch", worst.rule, self.distrusted[leaf.index], worst.error)
        errors = [one.error for one in known if one.error == one.error]
        if worst.measured and errors:
            text = self._lasting(leaf, errors)
            if text:
                return Coverage("mismatch", worst.rule, text, max(errors))
        reason = next((one.reason for one in known if one.status == worst.status and one.reason), worst.reason)
        return Coverage(worst.status, worst.rule, reason, max(errors, default=worst.error))

    def _lasting(self, leaf: Leaf, errors: Sequence[float]) -> str:
        """A difference too small for a single window's random probes to tell from rounding, if it lasts."""
        dtype = coarsest(*(step.measured[leaf.index].dtype for step in self.steps if leaf.index in step.measured))
        squares = self.differences.setdefault(leaf.index, deque(maxlen=64))
        squares.append(sum(error * error for error in errors) / len(errors))
        error, limit = (sum(squares) / len(squares)) ** 0.5, allowed(dtype, len(squares))
        return "" if error <= limit else f"{differs(error, limit)}, on average over {len(squares)} windows"

    def _sums(
        self, leaf: Leaf, parts: list[Judged | None], found: Coverage, scale: float, v2: float, adam: AdamState | None
    ) -> ParameterSums:
        square = scale * scale
        grad_sq = float(self.grad_sq[leaf.index]) / square
        own_sq = sum(part.own_sq for part in parts if part is not None) / square
        norms = self._sample_norms(leaf, parts) if found.status in ("exact", "second pass") else None
        variance = signal = preconditioned = None
        if self.moments and norms is not None:
            variance, signal = self._elementwise(leaf, scale, v2)
            if variance is not None and signal is not None and adam is not None:
                precondition = adam_preconditioner(adam.second_moment, adam.step, adam.beta2, adam.eps)
                preconditioned = preconditioned_sums(variance, signal, precondition)
        sample_sq = None if norms is None else norms / square
        return ParameterSums(grad_sq, own_sq, sample_sq, variance, signal, preconditioned)

    def _sample_norms(self, leaf: Leaf, parts: list[Judged | None]) -> Tensor:
        norms = []
        for step, part in zip(self.steps, parts, strict=True):
            record = step.measured.get(leaf.index)
            if part is None or record is None or record.arrival is None:
                norms.append(torch.zeros(step.samples, dtype=torch.float64))
            elif record.norms is not None:
                norms.append(record.norms.cpu())
            else:
                norms.append(record.arrival.squared_norm.reshape(1).cpu())
        return torch.cat(norms)

    def _elementwise(self, leaf: Leaf, scale: float, v2: float) -> tuple[Tensor | None, Tensor | None]:
        grad = self.grads.get(leaf.index)
        total: Tensor | None = None
        for step in self.steps:
            record = step.measured.get(leaf.index)
            if record is None or record.arrival is None:
                continue
            moment = record.second_moment
            if moment is None and step.samples == 1 and record.arrival.fresh is not None:
                moment = _dense(record.arrival.fresh).abs().square()
            if moment is None:
                return None, None
            total = moment if total is None else total + moment
        if grad is None or total is None:
            return None, None
        samples = sum(step.samples for step in self.steps)
        return elementwise_moments(grad / scale, total / (scale * scale), v2, samples)


def _dense(grad: Tensor) -> Tensor:
    """The gradient in full: elementwise figures are dense, also where the gradient (of an embedding, say) is not."""
    return grad.to_dense() if grad.is_sparse else grad
