"""What a tool is, and what it has found after a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.speed.problem import Problem

#: Kinds of work, in the table's order, each with its heading.
WORK = {
    "plain": "plain step",
    "norms": "norms of every sample's gradient",
    "moments": "elementwise second moments",
    "samples": "every sample's gradient in full",
    "less": "less than that",
}


class UnavailableError(Exception):
    """This tool cannot do this work here; the message is what the table shows."""


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """What was found in the step just made, for ``gᵢ``: the gradient of sample i's own loss, whose mean is ``.grad``.

    Attributes:
        norms: ``‖gᵢ‖`` per parameter, ``[n]``; NaN where a sample was left out.
        second: the mean of ``gᵢ²`` per parameter, of its shape.
        variance: unbiased variance across samples per parameter, of its shape.
        total_norms: ``‖gᵢ‖`` over all parameters, ``[n]``.
        noise_scale: ``tr Σ / |G|²`` of the batch.
        trace_cov: an unbiased estimate of ``tr Σ`` over all parameters, to be right in the mean only.
    """

    norms: Mapping[str, Tensor] = field(default_factory=dict)
    second: Mapping[str, Tensor] = field(default_factory=dict)
    variance: Mapping[str, Tensor] = field(default_factory=dict)
    total_norms: Tensor | None = None
    noise_scale: float | None = None
    trace_cov: float | None = None


class NoUpdate(Optimizer):
    """Changes nothing. Every training loop calls its optimizer, which takes its time however little it does."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:
        """Nothing."""


class Runner(ABC):
    """One tool on one problem. It may change the problem's model: each runner gets its own."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.parameters = dict(problem.model.named_parameters())
        self.optimizer = NoUpdate(list(self.parameters.values()))

    def whole_step(self) -> None:
        """What is timed: a step, and the call of an optimizer that changes nothing."""
        self.step()
        self.optimizer.step()

    @abstractmethod
    def step(self) -> None:
        """Forward, loss, backward and the tool's work, up to figures per parameter; gradscope's end with the optimizer's step."""

    def figures(self) -> Figures:
        """What the step just made has found."""
        return Figures()

    def settle(self) -> None:
        """Do what the tool has put off: timed after every 16 steps, and shared out among them."""
        return

    def clear(self) -> None:
        """Forget gradients and what the tool hung on parameters."""
        self.problem.model.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Take hooks off."""
        self.clear()


@dataclass(frozen=True, slots=True)
class Tool:
    """One line of the table.

    Attributes:
        title: what it is called.
        work: key of ``WORK``.
        make: its runner for a problem; raises ``UnavailableError`` where it cannot do this.
        ours: whether it is gradscope.
        needs: modules that must import.
        cost: rough ratio to a plain step: how much fits into a run.
        rounds: interleaved runs; 16 of ours hold exactly one guard window, 32 with ``every=16`` two measured ones.
        against: key of the tool that is the plain step of the same work.
        note: footnote of the table.
    """

    title: str
    work: str
    make: Callable[[Problem], Runner]
    ours: bool = False
    needs: tuple[str, ...] = ()
    cost: float = 2.0
    rounds: int = 16
    against: str = "plain"
    note: str = ""

    def start(self, problem: Problem) -> Runner:
        """A runner.

        Raises:
            UnavailableError: it is not installed, does not import, or cannot do this.
        """
        for name in self.needs:
            try:
                import_module(name)
            except ModuleNotFoundError as error:
                missing = error.name or name
                own = missing.partition(".")[0] == name.partition(".")[0]
                raise UnavailableError("not installed" if own else f"does not import: needs {missing}") from error
            except Exception as error:  # whatever a peer's import does belongs to its line of the table
                raise UnavailableError(f"does not import: {type(error).__name__}") from error
        return self.make(problem)


def owners(model: nn.Module) -> dict[str, nn.Module]:
    """The module of each parameter, by the parameter's full name."""
    return {
        f"{path}.{name}" if path else name: module
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }


def flat_norms(gradients: Tensor) -> Tensor:
    """``‖gᵢ‖`` of ``[n, *shape]``."""
    return gradients.flatten(1).norm(dim=1)
