"""BackPACK: the extensions ``BatchL2Grad``, ``SumGradSquared`` and ``Variance``."""

from __future__ import annotations

import warnings

from torch import Tensor

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Figures, Runner, UnavailableError, owners


class Backpacked(Runner):
    """Layers that BackPACK knows are extended; others stay plain, and their parameters unmeasured."""

    extension = ""
    field = ""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        import backpack
        from backpack import extensions

        self.backpack, self.active = backpack.backpack, getattr(extensions, self.extension)()
        known = self.active._BackpropExtension__module_extensions  # which layers it knows is said nowhere else
        self.measured = [
            name
            for name, module in owners(problem.model).items()
            if type(module) in known and getattr(module, "padding_idx", None) is None  # it refuses these
        ]
        if not self.measured:
            raise UnavailableError(f"{self.extension} knows none of its layers")
        for module in {owners(problem.model)[name] for name in self.measured}:
            backpack.extend(module)

    def step(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses hooks that torch calls deprecated
            with self.backpack(self.active):
                self.problem.loss().backward()

    def found(self) -> dict[str, Tensor]:
        """What BackPACK hung on the parameters."""
        return {name: getattr(self.parameters[name], self.field) for name in self.measured}

    def clear(self) -> None:
        super().clear()
        for parameter in self.parameters.values():
            parameter.__dict__.pop(self.field, None)


class BatchL2(Backpacked):
    """``‖hᵢ‖²``."""

    extension, field = "BatchL2Grad", "batch_l2"

    def figures(self) -> Figures:
        return Figures(norms={name: square.sqrt() * self.problem.samples for name, square in self.found().items()})


class SumOfSquares(Backpacked):
    """``Σ hᵢ²``."""

    extension, field = "SumGradSquared", "sum_grad_squared"

    def figures(self) -> Figures:
        return Figures(second={name: square * self.problem.samples for name, square in self.found().items()})


class Variance(Backpacked):
    """The biased variance of ``hᵢ``."""

    extension, field = "Variance", "variance"

    def figures(self) -> Figures:
        n = self.problem.samples
        return Figures(variance={name: each * (n**3 / (n - 1)) for name, each in self.found().items()})
