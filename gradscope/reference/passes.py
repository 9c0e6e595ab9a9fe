"""One forward of the loss, out of which any row's gradient can be taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as tree

from gradscope.errors import InvalidArgumentError
from gradscope.random_numbers import random_state

LossFn = Callable[[Any, Any], Tensor]


@dataclass(slots=True, eq=False)
class Call:
    """One call of the model during the loss."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random_state: list[Tensor]
    outputs: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Pass:
    """One forward of the whole loss, with fresh leaves in the place of the parameters."""

    leaves: dict[str, Tensor]
    loss: Tensor
    calls: list[Call]
    random: bool
    row: list[int | None]  # what the hooks on the outputs let through: None all, -1 nothing, else one row

    @staticmethod
    def run(model: nn.Module, loss_fn: LossFn, batch: Any) -> Pass:
        """Run the loss once."""
        leaves = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters() if p.requires_grad}
        if not leaves:
            raise InvalidArgumentError("The model has no parameter that requires a gradient.")
        calls: list[Call] = []
        row: list[int | None] = [None]
        before = random_state()
        with _recorded(model, calls, row):
            loss = run_loss(model, loss_fn, leaves, batch)
        random = any(not torch.equal(a, b) for a, b in zip(before, random_state(), strict=True))
        return Pass(leaves, loss, calls, random, row)

    def has_rows(self, n: int) -> bool:
        """Whether everything that the model returned is a tensor with one row per sample."""
        outputs = [leaf for call in self.calls for leaf in call.outputs]
        plain = all(leaf is None or isinstance(leaf, Tensor | int | float | str) for leaf in outputs)
        live = [leaf for leaf in outputs if isinstance(leaf, Tensor) and leaf.requires_grad]
        return plain and bool(live) and all(leaf.dim() > 0 and leaf.shape[0] == n for leaf in live)

    def reads_parameters_directly(self) -> bool:
        """Whether some gradient reaches the parameters past the model's outputs."""
        return any(bool(g.count_nonzero()) for g in self.gradient(-1).values())

    def gradient(self, row: int | None = None) -> dict[str, Tensor]:
        """Gradient of the loss; with ``row``, only what flows through that row of the model's outputs."""
        self.row[0] = row
        return gradient_of(self.loss, self.leaves)


class _LossModule(nn.Module):
    """The loss as a module, so that ``functional_call`` can exchange the parameters everywhere in it."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)


def run_loss(model: nn.Module, loss_fn: LossFn, leaves: Mapping[str, Tensor], batch: Any) -> Tensor:
    """The loss of a batch, with these leaves in the place of the parameters.

    Raises:
        InvalidArgumentError: it is not one number with a gradient.
    """
    module = _LossModule(model, loss_fn)
    with torch.enable_grad():
        loss = functional_call(module, {f"model.{name}": leaf for name, leaf in leaves.items()}, (batch,))
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        found = f"{tuple(loss.shape)}, requires_grad={loss.requires_grad}" if isinstance(loss, Tensor) else type(loss)
        raise InvalidArgumentError(f"loss_fn(model, batch) must return one number with a gradient; found {found}.")
    return loss.reshape(())


def gradient_of(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of the loss; zeros where none arrives."""
    grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad.to_dense() if grad.is_sparse else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


@contextmanager
def _recorded(model: nn.Module, calls: list[Call], row: list[int | None]) -> Iterator[None]:
    """Note every call of the model, and let only ``row[0]`` of its outputs' gradients through."""
    depth = [0]  # a model that calls itself: only the outermost call is one

    def only_row(grad: Tensor) -> Tensor:
        if row[0] is None:
            return grad
        mask = torch.zeros(grad.shape[:1] if grad.dim() else (), dtype=grad.dtype, device=grad.device)
        if row[0] >= 0:
            mask[row[0]] = 1
        return torch.where(mask.reshape(-1, *[1] * (grad.dim() - 1)) != 0, grad, 0) if grad.dim() else grad * mask

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        depth[0] += 1
        if depth[0] == 1:
            calls.append(Call(args, kwargs, random_state()))

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        depth[0] -= 1
        if depth[0]:
            return
        # Detached copies: the tensors themselves may be changed in place by the loss.
        calls[-1].outputs = tree.tree_leaves(output)
        for leaf in calls[-1].outputs:
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(only_row)
        calls[-1].outputs = [_kept(leaf) for leaf in calls[-1].outputs]

    handles = [
        model.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
        model.register_forward_hook(leave, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kept(leaf: Any) -> Any:
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
