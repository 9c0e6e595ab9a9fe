"""The open set: layer type → rule. One file a rule, one line here."""

from __future__ import annotations

from torch import nn
from torch.nn import Module

from gradscope.errors import DuplicateRuleError, InvalidArgumentError
from gradscope.rules.bilinear import BILINEAR
from gradscope.rules.convolution import CONVOLUTION, TRANSPOSED_CONVOLUTION
from gradscope.rules.embedding import EMBEDDING, EMBEDDING_BAG
from gradscope.rules.linear import LINEAR
from gradscope.rules.normalization import BATCH_NORM, GROUP_NORM, INSTANCE_NORM, LAYER_NORM, RMS_NORM
from gradscope.rules.prelu import PRELU
from gradscope.rules.rule import Describe, Rule

_RULES: dict[type[Module], Rule] = {
    nn.Linear: LINEAR,
    nn.Conv1d: CONVOLUTION,
    nn.Conv2d: CONVOLUTION,
    nn.Conv3d: CONVOLUTION,
    nn.ConvTranspose1d: TRANSPOSED_CONVOLUTION,
    nn.ConvTranspose2d: TRANSPOSED_CONVOLUTION,
    nn.ConvTranspose3d: TRANSPOSED_CONVOLUTION,
    nn.Embedding: EMBEDDING,
    nn.EmbeddingBag: EMBEDDING_BAG,
    nn.LayerNorm: LAYER_NORM,
    nn.RMSNorm: RMS_NORM,
    nn.GroupNorm: GROUP_NORM,
    nn.InstanceNorm1d: INSTANCE_NORM,
    nn.InstanceNorm2d: INSTANCE_NORM,
    nn.InstanceNorm3d: INSTANCE_NORM,
    nn.BatchNorm1d: BATCH_NORM,
    nn.BatchNorm2d: BATCH_NORM,
    nn.BatchNorm3d: BATCH_NORM,
    nn.PReLU: PRELU,
    nn.Bilinear: BILINEAR,
}


def register_rule(module_type: type[Module], rule: Rule | Describe) -> None:
    """Teach gradscope a layer type of your own.

    Args:
        module_type: the layer's class. Subclasses are covered while they do not override ``forward``.
        rule: a function ``(module, inputs, output_grad) -> {parameter's local name: hᵢ [n, *shape]}``, where ``inputs`` are
            the positional inputs of the call and samples lie along dimension 0, or a ``Rule`` for finer control. Contributions
            must sum to what autograd gives the parameter; every window checks that they do.

    Raises:
        DuplicateRuleError: if the type has a rule already.
        InvalidArgumentError: if ``module_type`` is no Module class, or ``rule`` cannot be called.
    """
    if not (isinstance(module_type, type) and issubclass(module_type, Module)):
        raise InvalidArgumentError(
            f"register_rule: {module_type!r} is not a subclass of torch.nn.Module. Pass the class."
        )
    if module_type in _RULES:
        raise DuplicateRuleError(
            f"{module_type.__qualname__} already has the rule {_RULES[module_type].name!r}. A second rule would silently "
            "replace it; register a subclass of your own instead."
        )
    if not isinstance(rule, Rule):
        if not callable(rule):
            raise InvalidArgumentError(
                f"register_rule: the rule for {module_type.__qualname__} is not callable: {rule!r}."
            )
        rule = Rule(name=getattr(rule, "__name__", "user rule"), describe=rule)
    _RULES[module_type] = rule


def find_rule(module: Module) -> tuple[Rule | None, str]:
    """The rule for a module, or None and the reason why there is none."""
    for cls in type(module).__mro__:
        rule = _RULES.get(cls)
        if rule is None:
            continue
        if "forward" in vars(module) or type(module).forward is not getattr(cls, "forward", None):
            return None, f"{type(module).__name__} changes {cls.__name__}'s forward"
        reason = rule.refuse(module)
        return (None, reason) if reason else (rule, "")
    return None, f"{type(module).__name__} has no rule"
