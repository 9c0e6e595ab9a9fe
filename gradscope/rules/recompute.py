"""Any module, by recomputing it alone: vmap of the vjp of ``functional_call``, or sample by sample."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn import Module
from torch.utils import _pytree as pytree

from gradscope.errors import GradscopeError
from gradscope.random_numbers import has_random_state, random_state, random_state_kept


class RecomputationError(GradscopeError):
    """A module cannot be recomputed sample by sample: the recomputation would not be what ran."""


@dataclass(frozen=True, slots=True, eq=False)
class Recomputation:
    """One call of a module, ready to be run again for each sample.

    Attributes:
        module: the module.
        parameters: its own parameters that are asked for, by local name.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        arg_dims: for each tensor among the arguments (flattened), where its samples lie; None where it has none.
        grads: for each output tensor that asks for a gradient, what came back; None where nothing did.
        grad_dims: where the samples lie in each output.
        autocast: device type, enabled and dtype of autocast when the module ran.
        tied: whether a parameter that has several names in the module is asked for under all of them.
    """

    module: Module
    parameters: Mapping[str, Tensor]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    arg_dims: Sequence[int | None]
    grads: Sequence[Tensor | None]
    grad_dims: Sequence[int]
    autocast: tuple[str, bool, torch.dtype]
    tied: bool = False

    def contributions(self) -> dict[str, Tensor]:
        """``hᵢ`` of each asked parameter, ``[n, *shape]``.

        Raises:
            RecomputationError: if the module draws random numbers, or runs differently on single samples.
        """
        device = next(iter(self.parameters.values())).device
        with random_state_kept(device), without_hooks(self.module), torch.enable_grad():
            before = random_state()
            try:
                result = self._mapped()
            except Exception:  # vmap refuses what it cannot batch with errors of many types: data-dependent control
                # flow, custom functions, randomness. Single samples show whether the module itself is at fault.
                result = self._looped()
            if not has_random_state(before):
                raise RecomputationError("it draws random numbers, so recomputing it would not give what ran")
        return result

    def _mapped(self) -> dict[str, Tensor]:
        leaves, spec = pytree.tree_flatten((self.args, dict(self.kwargs)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        present = [k for k, grad in enumerate(self.grads) if grad is not None]

        def one(sample: list[Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
            values = iter(_unsqueezed(sample, self.arg_dims))
            args, kwargs = pytree.tree_unflatten([next(values) if isinstance(v, Tensor) else v for v in leaves], spec)
            pull = vjp(lambda parameters: self._run(parameters, args, kwargs, present), dict(self.parameters))[1]
            pulled: dict[str, Tensor] = pull(_unsqueezed(cotangents, [self.grad_dims[k] for k in present]))[0]
            return pulled

        in_dims = (list(self.arg_dims), [self.grad_dims[k] for k in present])
        with warnings.catch_warnings():
            # That an operator is looped over inside vmap is nothing that the user did or can change.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            mapped: dict[str, Tensor] = vmap(one, in_dims=in_dims, randomness="error")(
                [tensor.detach() for tensor in tensors], [grad for grad in self.grads if grad is not None]
            )
        return mapped

    def _looped(self) -> dict[str, Tensor]:
        leaves, spec = pytree.tree_flatten((self.args, dict(self.kwargs)))
        present = [k for k, grad in enumerate(self.grads) if grad is not None]
        n = next(g.shape[d] for g, d in zip(self.grads, self.grad_dims, strict=True) if g is not None)
        parameters = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        found: dict[str, list[Tensor]] = {name: [] for name in parameters}
        for i in range(n):
            dims = iter(self.arg_dims)
            sample = [_narrowed(leaf.detach(), next(dims), i) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = pytree.tree_unflatten(sample, spec)
            outputs = self._run(parameters, args, kwargs, present)
            cotangents = [_narrowed(self.grads[k], self.grad_dims[k], i) for k in present]  # type: ignore[arg-type]
            grads = torch.autograd.grad(outputs, list(parameters.values()), cotangents, allow_unused=True)
            for (name, value), grad in zip(parameters.items(), grads, strict=True):
                found[name].append(torch.zeros_like(value) if grad is None else grad)
        return {name: torch.stack(grads) for name, grads in found.items()}

    def _run(self, parameters: Any, args: Any, kwargs: Any, present: list[int]) -> list[Tensor]:
        # Clones: writing running statistics back into the user's buffers would break the backward that is under way.
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        device, enabled, dtype = self.autocast
        with torch.autocast(device, enabled=enabled, dtype=dtype, cache_enabled=False):
            output = functional_call(self.module, ({**parameters}, buffers), args, kwargs, tie_weights=self.tied)
        outputs = outputs_of(output)
        return [outputs[k] for k in present]


def outputs_of(output: Any) -> list[Tensor]:
    """The tensors of a module's output that can carry a gradient, in order."""
    return [
        leaf
        for leaf in pytree.tree_leaves(output)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    ]


def _unsqueezed(tensors: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
    return [t if dim is None else t.unsqueeze(dim) for t, dim in zip(tensors, dims, strict=True)]


def _narrowed(tensor: Tensor, dim: int | None, i: int) -> Tensor:
    return tensor if dim is None else tensor.narrow(dim, i, 1)


@contextmanager
def without_hooks(module: Module) -> Iterator[None]:
    """The module and all inside it without forward and backward hooks; pre-hooks stay, since they may compute weights."""
    names = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    saved = [(child, {name: child.__dict__[name] for name in names}) for child in module.modules()]
    for child, hooks in saved:
        for name in hooks:
            child.__dict__[name] = OrderedDict()
    try:
        yield
    finally:
        for child, hooks in saved:
            child.__dict__.update(hooks)
