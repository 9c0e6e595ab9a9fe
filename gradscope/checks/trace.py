"""What happened to the gradients while the user's step ran: every increment, every write, every optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gradscope.checks.layout import Layout


@dataclass(slots=True, eq=False)
class Backward:
    """One backward pass.

    Attributes:
        increment: what it sent to the leaves, before it was added to ``.grad``.
        before: ``.grad`` before it.
        after: ``.grad`` after it.
        micro_batches: which micro-batches went into the model since the last backward; empty where none was recognised.
        moved: whether the parameters differed from those at the window's start.
        moved_during: whether they changed while it ran, as with an optimizer that steps inside backward.
        rates: the optimizers' learning rates.
        scale: the loss scale of the first GradScaler, or None.
    """

    increment: Tensor
    before: Tensor
    after: Tensor
    micro_batches: tuple[int, ...]
    moved: bool
    moved_during: bool
    rates: tuple[float, ...]
    scale: float | None


@dataclass(slots=True, eq=False)
class Write:
    """A change of ``.grad`` outside of backward.

    Attributes:
        position: how many backwards of the window came before it.
        steps: how many optimizer steps of the window came before it.
        before: ``.grad`` before it.
        after: ``.grad`` after it.
        operators: the in-place operators that made it; empty for an assignment.
        changed: which parameters it changed.
        read_norm: whether a norm of the gradients was computed just before, as clipping does.
    """

    position: int
    steps: int
    before: Tensor
    after: Tensor
    operators: tuple[str, ...]
    changed: frozenset[int]
    read_norm: bool

    @property
    def unscaled(self) -> bool:
        """Whether a GradScaler made this write."""
        return any("unscale" in name for name in self.operators)


@dataclass(slots=True, eq=False)
class Step:
    """One optimizer step.

    Attributes:
        position: how many backwards of the window came before the parameters changed.
        owned: which parameters the optimizer has.
        gradient: the gradient that it applied.
        inside: whether the backwards ran in a closure inside the step.
    """

    position: int
    owned: tuple[bool, ...]
    gradient: Tensor
    inside: bool = False


@dataclass(slots=True, eq=False)
class WindowTrace:
    """One call of the user's step on one window.

    Attributes:
        layout: where the parameters lie in the vectors.
        start: values of the parameters at the start.
        leftover: ``.grad`` at the first backward.
        backwards: in order.
        writes: in order.
        steps: in order.
        end: ``.grad`` at the end.
        end_moved: whether the parameters had changed at the end.
        modes: which modules were in training mode when the model was first run.
        schedule: by how much each scheduler's count went on.
    """

    layout: Layout
    start: Tensor
    leftover: Tensor
    end: Tensor
    backwards: list[Backward] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    end_moved: bool = False
    modes: tuple[bool, ...] | None = None
    schedule: tuple[int, ...] = ()

    @property
    def owned(self) -> tuple[bool, ...]:
        """Which parameters are judged: those of the optimizers that stepped, or all where none did."""
        if not self.steps:
            return (True,) * len(self.layout.names)
        return tuple(any(step.owned[i] for step in self.steps) for i in range(len(self.layout.names)))

    @property
    def closed_at(self) -> int:
        """How many backwards came before the gradient was first applied, or before the end."""
        return min((step.position for step in self.steps), default=len(self.backwards))

    def states(self) -> list[Tensor]:
        """``.grad`` after the last backward, after each later write, and as it was applied."""
        last = self.backwards[self.closed_at - 1].after if self.closed_at else self.leftover
        states = [last, *(w.after for w in self.final_writes())]
        if not self.steps:
            return [*states, self.end] if not self.end_moved else states
        applied = states[-1].clone()
        for step in self.steps:
            if step.position == self.closed_at:
                places = self.layout.places(step.owned)
                applied[places] = step.gradient[places]
        return [*states, applied]

    def final_writes(self) -> list[Write]:
        """Writes between the last backward and the application of the gradient."""
        final = [w for w in self.writes if w.position == self.closed_at and w.steps == 0]
        if not self.steps and self.end_moved:
            # Applied by hand, without an optimizer: what is cleared afterwards was applied before.
            while final and not bool(final[-1].after.any()):
                final.pop()
        return final

    def inner_writes(self) -> list[Write]:
        """Writes between the first and the last backward."""
        return [w for w in self.writes if 0 < w.position < self.closed_at]
