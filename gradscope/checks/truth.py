"""What the gradients should have been: of the whole window, and of each micro-batch alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as tree

from gradscope.checks.layout import Layout
from gradscope.errors import InvalidArgumentError

LossFn = Callable[[Any, Any], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The gradients that a window should be made of, at the parameters it started from.

    Attributes:
        layout: where the parameters lie in the vectors.
        whole: ``G``, the gradient of the loss of all samples of the window.
        parts: ``mⱼ``, one row per micro-batch: the gradient of the loss of that micro-batch alone.
        direct: the part of ``G`` that does not flow through the model's outputs: a regularizer in the loss.
        weights: ``aⱼ`` with ``G - direct = Σ aⱼ (mⱼ - direct)``; None where there are none, since samples interact.
    """

    layout: Layout
    whole: Tensor
    parts: Tensor
    direct: Tensor
    weights: tuple[float, ...] | None

    @property
    def data(self) -> Tensor:
        """``dⱼ = mⱼ - direct``: what comes from the samples."""
        return self.parts - self.direct

    def scales(self) -> Tensor:
        """Per parameter, the size against which an error counts.

        ``‖G‖`` of that parameter, and where it is structurally zero (an attention's key bias) a floor that rounding
        cannot pass: a small part of its uncancelled share and of the whole gradient.
        """
        weights = torch.tensor(self.weights or [1.0] * len(self.parts), dtype=torch.float64, device="cpu")
        total = float(self.whole.norm())
        sizes = []
        for place in self.layout.slices:
            uncancelled = float((weights.abs() * self.parts[:, place].norm(dim=1)).sum())
            sizes.append(max(float(self.whole[place].norm()), 1e-4 * uncancelled, 1e-8 * total))
        return torch.tensor(sizes, dtype=torch.float64, device="cpu")

    def errors(self, gradient: Tensor) -> Tensor:
        """Per parameter ``‖gradient - G‖ / scale``."""
        difference = gradient - self.whole
        norms = torch.stack([difference[place].norm() for place in self.layout.slices])
        scales = self.scales()
        return torch.where(norms == 0, 0.0, norms / scales)


def gradient(model: nn.Module, loss_fn: LossFn, batch: Any, layout: Layout) -> Tensor:
    """Gradient of ``loss_fn(model, batch)``; ``.grad`` is left as it was.

    Raises:
        InvalidArgumentError: the loss is not one number with a gradient.
    """
    with torch.enable_grad():
        loss = loss_fn(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InvalidArgumentError(
                f"loss_fn(model, batch) must return one number that depends on the parameters; it returned {found}. "
                "Do not detach it, and reduce it to a mean or a sum."
            )
        grads = torch.autograd.grad(loss.reshape(()), layout.parameters, allow_unused=True, retain_graph=True)
    if any(grad is not None for grad in grads) and not isinstance(model, DistributedDataParallel):
        return layout.vector(grads)
    return _by_backward(layout, loss)


def _by_backward(layout: Layout, loss: Tensor) -> Tensor:
    """Through ``.grad``: reentrant checkpointing and averaging over ranks happen in no other way."""
    kept = [p.grad for p in layout.parameters]
    for p in layout.parameters:
        p.grad = None
    loss.reshape(()).backward()
    result = layout.gradients()
    for p, grad in zip(layout.parameters, kept, strict=True):
        p.grad = grad
    return result


def find_truth(model: nn.Module, loss_fn: LossFn, layout: Layout, whole: Any, parts: Sequence[Any]) -> Truth:
    """Run the loss on the whole window and on each micro-batch, at the model's present parameters."""
    total = gradient(model, loss_fn, whole, layout)
    singles = torch.stack([gradient(model, loss_fn, part, layout) for part in parts])
    if not bool(total.isfinite().all()):
        raise InvalidArgumentError(
            "The gradient of loss_fn over the whole batch is not finite, so nothing can be compared with it. "
            "gradscope.checks.assert_finite names the parameter and the sample."
        )
    direct = _direct(model, loss_fn, layout, whole, parts[0])
    sizes = [_length(part) for part in parts]
    weights = _weights(total - direct, singles - direct, sizes, _tolerance(layout))
    return Truth(layout, total, singles, direct, weights)


def _tolerance(layout: Layout) -> float:
    coarsest = max(torch.finfo(p.dtype).eps for p in layout.parameters)
    return 1e-6 if coarsest < 1e-12 else max(1e-3, 16 * coarsest)


def _length(batch: Any) -> int:
    return next(leaf.shape[0] for leaf in tree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim())


def _direct(model: nn.Module, loss_fn: LossFn, layout: Layout, whole: Any, part: Any) -> Tensor:
    """The gradient with the model's outputs blocked, if it is the same for two batches; else zeros."""
    none = torch.zeros(layout.size, dtype=torch.float64, device="cpu")
    first = _blocked(model, loss_fn, whole, layout)
    if first is None or not bool(first.any()):
        return none
    second = _blocked(model, loss_fn, part, layout)
    same = second is not None and torch.allclose(first, second, rtol=1e-6, atol=1e-9 * float(first.abs().max()))
    return first if same else none


def _blocked(model: nn.Module, loss_fn: LossFn, batch: Any, layout: Layout) -> Tensor | None:
    called = [False]

    def block(module: nn.Module, inputs: Any, output: Any) -> None:
        called[0] = True
        for leaf in tree.tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(torch.zeros_like)

    handle = model.register_forward_hook(block)
    try:
        result = gradient(model, loss_fn, batch, layout)
    finally:
        handle.remove()
    return result if called[0] else None


def _weights(whole: Tensor, parts: Tensor, sizes: Sequence[int], tolerance: float) -> tuple[float, ...] | None:
    """``aⱼ`` with ``whole = Σ aⱼ partⱼ``: shares of the samples, then plain sums, then least squares (tokens)."""
    total = sum(sizes)
    for guess in ([size / total for size in sizes], [1.0] * len(sizes)):
        if _fits(whole, parts, guess, tolerance):
            return tuple(guess)
    solved = least_squares(parts, whole)
    return tuple(solved) if solved is not None and _fits(whole, parts, solved, tolerance) else None


def _fits(whole: Tensor, parts: Tensor, weights: Sequence[float], tolerance: float) -> bool:
    weight = torch.tensor(weights, dtype=torch.float64, device="cpu")
    size = max(float(whole.norm()), 1e-4 * float((weight.abs() * parts.norm(dim=1)).sum()))
    return float((weight @ parts - whole).norm()) <= tolerance * size


def least_squares(rows: Tensor, target: Tensor) -> list[float] | None:
    """Coefficients ``c`` with ``Σ cⱼ rowⱼ`` closest to the target; None where they are not unique."""
    norms = rows.norm(dim=1)
    if not bool((norms > 0).all()) or len(rows) > rows.shape[1]:
        return None
    columns = (rows / norms[:, None]).T
    if int(torch.linalg.matrix_rank(columns, rtol=1e-7)) < len(rows):
        return None
    return [float(c) for c in torch.linalg.lstsq(columns, target[:, None], driver="gelsd").solution[:, 0] / norms]
