"""The slow oracle: per-sample gradients from autograd alone, one sample at a time.

It shares no code with the rules and knows no layer type. For sample ``i`` the gradient of the whole batch's loss is
propagated once more, and at the model's outputs only row ``i`` is let through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as tree

from gradscope.errors import InvalidArgumentError, MixedSamplesError

LossFn = Callable[[Any, Any], Tensor]

#: Relative difference below which two results of the same computation, by dtype, count as equal.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def per_sample_gradients(model: nn.Module, loss_fn: LossFn, batch: Any) -> dict[str, Tensor]:
    """Per-sample gradients ``gᵢ = n·hᵢ``, where ``hᵢ`` is what sample ``i`` adds to ``p.grad``.

    So the mean of ``gᵢ`` is ``p.grad`` exactly, whatever the loss's reduction. The model runs in its present mode. With
    dropout, the random state at the call decides the masks: the result belongs to a forward from that same state. A
    loss that mixes samples by itself (contrastive losses, batch statistics) has no per-sample gradients either; there
    ``hᵢ`` is the share that flows through row ``i`` of the outputs.

    Where the model's outputs have no row per sample (it returns a scalar loss, is used through its submodules, or the
    loss reads parameters directly), the loss is run on single samples instead, and the weights with which they make
    up the batch's gradient are solved for and verified.

    Args:
        model: any module; its parameters, ``.grad``, buffers, modes and the random state are left as they were.
        loss_fn: ``loss_fn(model, batch)``, the scalar loss of a whole batch.
        batch: any nested structure of tensors whose dimension 0 is the sample.

    Returns:
        ``[n, *p.shape]`` in the parameter's dtype, for every parameter that requires a gradient; zero where nothing
        reaches it. A tied parameter has one entry, under its first name in ``named_parameters``.

    Raises:
        MixedSamplesError: a sample's output depends on other samples, so per-sample gradients do not exist.
        InvalidArgumentError: the batch has no common dimension 0, the loss is no scalar or has no gradient, or the
            batch's gradient is no weighted sum of single samples' gradients.
    """
    n = sample_count(batch)
    with _unchanged(model):
        pass_ = _Pass.run(model, loss_fn, batch)
        if pass_.has_rows(n) and not pass_.reads_parameters_directly():
            for call in pass_.calls:
                _require_independent_rows(model, call, n)
            contributions = [pass_.gradient(row) for row in range(n)]
            _require_sum(contributions, pass_.gradient())
        else:
            contributions = _contributions_of_slices(model, loss_fn, batch, n, pass_)
    return {name: n * torch.stack([one[name] for one in contributions]) for name in contributions[0]}


def sample_count(batch: Any) -> int:
    """Number of samples: the common size of dimension 0 of the batch's tensors.

    Raises:
        InvalidArgumentError: there is no tensor, or their sizes differ.
    """
    sizes = {leaf.shape[0] for leaf in tree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(sizes) != 1 or 0 in sizes:
        found = f"sizes {sorted(sizes)}" if sizes else "no tensor with a dimension"
        raise InvalidArgumentError(
            "The batch must be a nested structure of tensors that all have the samples along dimension 0; found "
            f"{found}. Leave out or expand what is not per sample."
        )
    return int(sizes.pop())


def take(batch: Any, rows: slice | Sequence[int] | Tensor) -> Any:
    """The batch of only these samples; what is no tensor with a dimension is passed on as it is."""
    index = rows if isinstance(rows, slice) else torch.as_tensor(rows)

    def of(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.dim()):
            return leaf
        return leaf[index if isinstance(index, slice) else index.to(leaf.device)]

    return tree.tree_map(of, batch)


@dataclass(slots=True, eq=False)
class _Call:
    """One call of the model during the loss."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random_state: list[Tensor]
    outputs: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Pass:
    """One forward of the whole loss, with fresh leaves in the place of the parameters."""

    leaves: dict[str, Tensor]
    loss: Tensor
    calls: list[_Call]
    random: bool
    row: list[int | None]  # what the hooks on the outputs let through: None all, -1 nothing, else one row

    @staticmethod
    def run(model: nn.Module, loss_fn: LossFn, batch: Any) -> _Pass:
        leaves = {k: p.detach().clone().requires_grad_() for k, p in model.named_parameters() if p.requires_grad}
        if not leaves:
            raise InvalidArgumentError("The model has no parameter that requires a gradient.")
        calls: list[_Call] = []
        row: list[int | None] = [None]
        before = _random_state()
        with _recorded(model, calls, row):
            loss = _loss(model, loss_fn, leaves, batch)
        random = any(not torch.equal(a, b) for a, b in zip(before, _random_state(), strict=True))
        return _Pass(leaves, loss, calls, random, row)

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
        return _gradient(self.loss, self.leaves)


class _LossModule(nn.Module):
    """The loss as a module, so that ``functional_call`` can exchange the parameters everywhere in it."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)


def _loss(model: nn.Module, loss_fn: LossFn, leaves: Mapping[str, Tensor], batch: Any) -> Tensor:
    module = _LossModule(model, loss_fn)
    with torch.enable_grad():
        loss = functional_call(module, {f"model.{name}": leaf for name, leaf in leaves.items()}, (batch,))
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        found = f"{tuple(loss.shape)}, requires_grad={loss.requires_grad}" if isinstance(loss, Tensor) else type(loss)
        raise InvalidArgumentError(f"loss_fn(model, batch) must return one number with a gradient; found {found}.")
    return loss.reshape(())


def _gradient(loss: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad.to_dense() if grad.is_sparse else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


@contextmanager
def _recorded(model: nn.Module, calls: list[_Call], row: list[int | None]) -> Iterator[None]:
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
            calls.append(_Call(args, kwargs, _random_state()))

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        depth[0] -= 1
        if depth[0]:
            return
        # Detached copies: the tensors themselves may be changed in place by the loss.
        calls[-1].outputs = tree.tree_leaves(output)
        for leaf in calls[-1].outputs:
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(only_row)  # type: ignore[no-untyped-call]
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


def _require_independent_rows(model: nn.Module, call: _Call, n: int) -> None:
    """Output row ``i`` must stay as it is when every other row of the input is replaced by row ``i``."""
    for i in range(n):

        def only(leaf: Any, i: int = i) -> Any:
            batched = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == n
            return leaf[[i] * n] if batched else leaf

        args, kwargs = tree.tree_map(only, (call.args, call.kwargs))
        _set_random_state(call.random_state)
        with torch.no_grad():
            outputs = tree.tree_leaves(model(*args, **kwargs))
        for was, now in zip(call.outputs, outputs, strict=True):
            if not (isinstance(was, Tensor) and was.requires_grad):
                continue
            if not _close(now[i], was[i]):
                raise MixedSamplesError(
                    f"{type(model).__name__} ({'training' if model.training else 'eval'} mode) mixes the samples of a "
                    f"batch: output {i} changes when the other samples are replaced, so per-sample gradients do not "
                    "exist. Put BatchNorm in eval mode, or replace it with GroupNorm."
                )


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = TOLERANCE.get(b.dtype, 2e-4)
    a, b = (t.detach() if t.is_complex() else t.detach().double() for t in (a, b))
    scale, error = float(torch.linalg.vector_norm(b)), float(torch.linalg.vector_norm(a - b))
    return error <= tolerance * scale or scale != scale


def _require_sum(contributions: list[dict[str, Tensor]], whole: dict[str, Tensor]) -> None:
    error = _residual(contributions, [1.0] * len(contributions), whole)
    if error > 1:
        raise MixedSamplesError(
            "What flows through the rows of the model's outputs does not add up to the gradient of the loss "
            f"({error:.1g} times the rounding bound), so per-sample gradients do not exist."
        )


def _residual(parts: list[dict[str, Tensor]], weights: Sequence[float], whole: dict[str, Tensor]) -> float:
    """Largest over the parameters of ``‖Σ aᵢpᵢ - whole‖``, in units of what rounding may explain."""
    worst = 0.0
    top = sum(float(w.abs().square().sum().double()) for w in whole.values()) ** 0.5
    for name, target in whole.items():
        total = sum((a * p[name] for a, p in zip(weights, parts, strict=True)), torch.zeros_like(target))
        size = sum(abs(a) * float(torch.linalg.vector_norm(p[name])) for a, p in zip(weights, parts, strict=True))
        # A structurally zero gradient is rounding noise: the floor is relative to the whole gradient.
        scale = max(float(torch.linalg.vector_norm(target)), size, 1e-5 * top)
        error = float(torch.linalg.vector_norm(total - target))
        if error > 0:
            worst = max(worst, error / (TOLERANCE.get(target.dtype, 2e-4) * scale))
    return worst


def _contributions_of_slices(
    model: nn.Module, loss_fn: LossFn, batch: Any, n: int, whole: _Pass
) -> list[dict[str, Tensor]]:
    """``hᵢ = aᵢ·mᵢ`` with ``mᵢ`` the gradient of the loss of sample ``i`` alone and ``Σ aᵢmᵢ`` the batch's gradient."""
    where = f"{type(model).__name__}: the outputs have no row per sample, so single samples were run; "
    if whole.random:
        raise InvalidArgumentError(
            where + "but the model draws random numbers (dropout), and a single sample draws others than the batch. "
            "Use eval mode, or let the model return its outputs and compute the loss in loss_fn."
        )
    target = whole.gradient()
    single = []
    for i in range(n):
        try:
            loss = _loss(model, loss_fn, whole.leaves, take(batch, [i]))
        except (RuntimeError, ValueError, IndexError) as error:
            raise MixedSamplesError(where + f"but sample {i} alone cannot be run: {error}") from error
        single.append(_gradient(loss, whole.leaves))
    for weights in ([1.0 / n] * n, [1.0] * n, _weights(single, target)):
        if weights is not None and _residual(single, weights, target) <= 1:
            return [{name: a * g for name, g in one.items()} for a, one in zip(weights, single, strict=True)]
    raise MixedSamplesError(
        where
        + "but their gradients cannot be weighted to make up the batch's gradient: samples interact (BatchNorm in "
        "training mode, contrastive losses), or the weights are not determined. Let the model return its outputs and "
        "compute the loss in loss_fn."
    )


def _weights(single: list[dict[str, Tensor]], target: dict[str, Tensor]) -> list[float] | None:
    """Weights ``aᵢ`` with ``Σ aᵢmᵢ = target`` in least squares; None where they are not unique."""
    columns = torch.stack([torch.cat([g.double().reshape(-1) for g in one.values()]) for one in single], 1)
    scale = columns.norm(dim=0)
    if not bool((scale > 0).all()):
        return None
    columns = columns / scale
    if int(torch.linalg.matrix_rank(columns, rtol=1e-4)) < len(single):
        return None
    goal = torch.cat([g.double().reshape(-1) for g in target.values()])
    solution = torch.linalg.lstsq(columns, goal.unsqueeze(1)).solution[:, 0] / scale
    return [float(a) for a in solution]


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put buffers and the random state back at the end; parameters and ``.grad`` are never touched."""
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    random = _random_state()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, was in buffers:
                if not torch.equal(buffer, was):
                    buffer.copy_(was)
        _set_random_state(random)


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])
