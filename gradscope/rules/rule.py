"""What a rule is: how one type of layer turns its inputs and its output's gradient into contributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import Module

from gradscope.contributions import Contribution

#: ``(module, inputs, output_grad) -> {parameter's local name: its contributions, or per-sample gradients [n, *shape]}``.
Describe = Callable[[Module, tuple[Any, ...], Tensor], Mapping[str, "Contribution | Tensor"]]


def _applies(module: Module) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Rule:
    """How the contributions of one type of layer are described.

    Attributes:
        name: as the coverage shows it.
        describe: called with the module, its positional inputs (keywords are put in their places) and the gradient of its
            output. Samples lie along dimension 0 of inputs and gradient. Returns, by the parameter's name in the module,
            a ``Contribution``, or the contributions ``hᵢ`` themselves as a tensor ``[n, *shape]``.
        rows: which dimensions of input and output may carry the samples: every dimension but the last (``"leading"``,
            for layers that treat all positions alike), or only dimension 0 (``"first"``).
        features: how many trailing dimensions of the output are one position's features (``"leading"`` rules only).
        refuse: why the rule does not apply to this module; empty where it does.
        saved: what the layer's node has saved and the rule can use, from its output: tensors ``[n, ...]`` that follow the inputs.
    """

    name: str
    describe: Describe
    rows: Literal["leading", "first"] = "first"
    features: Callable[[Module], int] = lambda module: 1
    refuse: Callable[[Module], str] = _applies
    saved: Callable[[Tensor], tuple[Tensor, ...]] | None = None


def owns(*names: str) -> Callable[[Module], str]:
    """A refusal unless the module holds these parameters itself: a computed weight has no closed form."""

    def refuse(module: Module) -> str:
        missing = [name for name in names if name not in module._parameters]
        return f"{', '.join(missing)} is computed from other parameters" if missing else ""

    return refuse
