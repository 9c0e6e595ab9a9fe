"""Opacus: hooks that build every sample's gradient, ghost norms, and torch's expanded weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools.tool import Figures, Runner, flat_norms


def own_lstm(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters, after every LSTM was replaced by the one that Opacus asks for."""
    from opacus.layers import DPLSTM

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LSTM):
                own = DPLSTM(child.input_size, child.hidden_size, child.num_layers, batch_first=child.batch_first)
                own.load_state_dict(child.state_dict())
                setattr(module, name, own.to(next(child.parameters()).device).train())
    return dict(model.named_parameters())  # it registers them under torch's names


class Hooked(Runner):
    """``GradSampleModule``; norms are taken from the gradients."""

    wrapper = "GradSampleModule"
    found: dict[str, Tensor]

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        from opacus import grad_sample

        self.parameters = own_lstm(problem.model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.wrapped = getattr(grad_sample, self.wrapper)(problem.model, loss_reduction="mean", **self.options())
        self.wrapped.train()

    def options(self) -> dict[str, Any]:
        """What the wrapper is given besides."""
        return {"strict": False}

    def step(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses hooks that torch calls deprecated
            self.problem.loss(self.wrapped).backward()
        self.finish()

    @torch.no_grad()
    def finish(self) -> None:
        """Make figures of the gradients."""
        self.found = {name: flat_norms(p.grad_sample) for name, p in self.parameters.items()}

    def figures(self) -> Figures:
        return Figures(norms=self.found)

    def clear(self) -> None:
        super().clear()
        for parameter in self.parameters.values():
            parameter.grad_sample = None


class HookedMoments(Hooked):
    """Elementwise squares, from the gradients."""

    @torch.no_grad()
    def finish(self) -> None:
        self.found = {name: p.grad_sample.square().mean(0) for name, p in self.parameters.items()}

    def figures(self) -> Figures:
        return Figures(second=self.found)


class Ghost(Hooked):
    """Norms without gradients where a layer has a rule for that."""

    wrapper = "GradSampleModuleFastGradientClipping"

    def options(self) -> dict[str, Any]:
        return {"strict": False, "use_ghost_clipping": True}

    def finish(self) -> None:
        self.found = {name: p._norm_sample for name, p in self.parameters.items()}

    def clear(self) -> None:
        super().clear()
        for parameter in self.parameters.values():
            parameter.__dict__.pop("_norm_sample", None)


class ExpandedWeights(Hooked):
    """``GradSampleModuleExpandedWeights``: gradients in full, whose mean becomes ``.grad``."""

    wrapper = "GradSampleModuleExpandedWeights"

    def options(self) -> dict[str, Any]:
        return {}

    @torch.no_grad()
    def finish(self) -> None:
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = parameter.grad_sample.mean(0)

    def figures(self) -> Figures:
        return Figures(norms={name: flat_norms(p.grad_sample) for name, p in self.parameters.items()})
