"""fastDP (on GitHub, not on PyPI): its hooks for per-sample norms, without its clipping."""

from __future__ import annotations

import warnings

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Figures, Runner, UnavailableError, owners


class NormHooks(Runner):
    """Norms by its ``MixOpt`` rule: ghost norms or gradients in full, whichever takes less memory."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        from fastDP import autograd_grad_sample as hooks
        from fastDP.supported_layers_grad_samplers import _supported_layers_norm_sample_AND_clipping as known

        self.measured = [name for name, module in owners(problem.model).items() if type(module) in known]
        if not self.measured:
            raise UnavailableError("it knows none of the layers")
        for parameter in self.parameters.values():
            parameter.initially_requires_grad = True
        hooks.add_hooks(problem.model, loss_reduction="mean", clipping_mode="MixOpt", block_heads=[])
        self.hooks = hooks

    def step(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses hooks that torch calls deprecated
            self.problem.loss().backward()

    def figures(self) -> Figures:
        return Figures(norms={name: self.parameters[name].norm_sample for name in self.measured})

    def clear(self) -> None:
        super().clear()
        for parameter in self.parameters.values():
            for name in ("norm_sample", "grad_sample"):
                parameter.__dict__.pop(name, None)
        for module in self.problem.model.modules():
            for name in ("activations", "backprops"):
                module.__dict__.pop(name, None)

    def close(self) -> None:
        self.hooks.remove_hooks(self.problem.model)
