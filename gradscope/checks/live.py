"""The user's own loop, checked while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils import _pytree as tree

from gradscope.checks.borrowed import borrowed
from gradscope.checks.causes import Finding, find_causes
from gradscope.checks.causes.transforms import constant_factors
from gradscope.checks.describe import described
from gradscope.checks.failures import AccumulationFailure
from gradscope.checks.judge import Judged, judge
from gradscope.checks.layout import Layout
from gradscope.checks.message import accumulation_message
from gradscope.checks.state import Companions, reseed
from gradscope.checks.trace import WindowTrace
from gradscope.checks.tracer import Tracer
from gradscope.checks.trial import tolerance_of
from gradscope.checks.truth import LossFn, Truth, find_truth, gradient
from gradscope.errors import InvalidArgumentError
from gradscope.reference import sample_count

_REMEMBERED = 8


def loop(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    loss_fn: LossFn,
    *,
    join: Callable[[list[Any]], Any] | None = None,
    rtol: float | None = None,
) -> Loop:
    """A context manager around a live training loop, in which every window is checked as it happens.

    ::

        with gradscope.checks.loop(model, optimizer, loss_fn) as check:
            for batch in check.batches(loader):
                ...                                  # the loop, as it was

    A window is what ``check.batches`` gave out since the last ``optimizer.step()``. The gradient that the step applied
    must be that of ``loss_fn`` over all of it. The training itself is not changed.

    Args:
        model: the model that is trained; without active dropout, whose gradient could not be computed a second time.
        optimizer: the optimizer, or several that step together.
        loss_fn: ``loss_fn(model, batch)``: the loss that is meant for the whole window.
        join: makes one batch of a list of them; by default tensors are concatenated along dimension 0.
        rtol: relative error that passes; by default it follows the parameters' dtype.

    Raises:
        AccumulationFailure: from inside ``optimizer.step()``, for the first window that is wrong; or at the end, where no
            window was ever closed.
        InvalidArgumentError: the loss is random, or the batches of a window cannot be joined.
    """
    return Loop(model, optimizer, loss_fn, join=join, rtol=rtol)


class Loop:
    """See ``loop``. ``windows`` counts those that were checked."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        loss_fn: LossFn,
        *,
        join: Callable[[list[Any]], Any] | None,
        rtol: float | None,
    ) -> None:
        self.windows = 0
        self._model, self._loss_fn, self._join, self._rtol = model, loss_fn, join or _joined, rtol
        self._optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        self._layout = Layout.of(model)
        self._tracer = Tracer(model, self._layout, Companions.of(model, self._optimizers))
        self._batches: list[Any] = []
        self._stepped: set[int] = set()
        self._judged: list[Judged] = []

    def __enter__(self) -> Loop:
        self._tracer.__enter__()
        # After the tracer's own hooks: the step is noted by then.
        self._handle = register_optimizer_step_post_hook(self._after_step)
        self._tracer.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._handle.remove()
        self._tracer.__exit__()
        if kind is None and not self.windows:
            raise AccumulationFailure(
                "No window was checked: the optimizer never stepped while the loop ran, or check.batches(loader) gave out no "
                "batch. Put the whole loop, with its optimizer.step(), inside the `with`."
            )

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches, noted as they are given out."""
        for batch in loader:
            kept = tree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, batch)
            self._batches.append(kept)
            self._tracer.feed(kept)
            yield batch

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not any(optimizer is mine for mine in self._optimizers):
            return
        self._stepped.add(id(optimizer))
        if len(self._stepped) < len(self._optimizers):
            return
        trace, batches = self._tracer.end(), self._batches
        self._batches, self._stepped = [], set()
        if batches:
            self._check(trace, batches)
        self._tracer.begin()

    def _check(self, trace: WindowTrace, batches: list[Any]) -> None:
        sizes = tuple(sample_count(batch) for batch in batches)
        tolerance = tolerance_of(self._model, wide=False, rtol=self._rtol)
        truth = self._truth(trace, batches, tolerance.gradient)
        self.windows += 1
        piece = (sizes, self.windows, trace, truth, tolerance)
        judged = judge(*piece, ())
        constant = constant_factors([*self._judged, judged])
        judged = judge(*piece, constant) if constant else judged
        self._judged = [*self._judged[1 - _REMEMBERED :], judged]
        if judged.right:
            return
        if judged.interacts:
            evidence = "the micro-batches' gradients cannot be weighted to make up the whole window's."
            findings = [Finding("samples interact", judged, evidence)]
        else:
            unknown = Finding("unknown", judged, "no known pattern fits what was seen.")
            findings = find_causes(self._judged) or [unknown]
        diagnosis = described(findings)
        raise AccumulationFailure(accumulation_message(diagnosis), diagnosis)

    def _truth(self, trace: WindowTrace, batches: list[Any], tolerance: float) -> Truth:
        with borrowed(self._model, None, wide=False):
            with torch.no_grad():
                for p, place in zip(self._layout.parameters, self._layout.slices, strict=True):
                    value = trace.start[place]
                    value = torch.view_as_complex(value.reshape(-1, 2)) if p.is_complex() else value
                    p.copy_(value.reshape(p.shape))
            whole = self._join(batches)
            if not self.windows:
                self._require_repeatable(whole, tolerance)
            return find_truth(self._model, self._loss_fn, self._layout, whole, batches)

    def _require_repeatable(self, batch: Any, tolerance: float) -> None:
        results = []
        for seed in (0, 1):
            reseed(seed)
            results.append(gradient(self._model, self._loss_fn, batch, self._layout))
        if float((results[0] - results[1]).norm()) > tolerance * float(results[0].norm()):
            raise InvalidArgumentError(
                "loop(): the gradient of loss_fn changes with the random state (dropout?), so it cannot be computed a second "
                "time. For the check, set dropout to 0 or use model.eval(); assert_accumulates does so by itself."
            )


def _joined(batches: list[Any]) -> Any:
    """One batch of several: tensors concatenated along dimension 0."""
    leaves = [tree.tree_flatten(batch) for batch in batches]
    spec = leaves[0][1]
    columns = zip(*(flat for flat, _ in leaves), strict=True)
    try:
        merged = [torch.cat(c) if isinstance(c[0], Tensor) and c[0].dim() else c[0] for c in columns]
    except (RuntimeError, ValueError) as error:
        raise InvalidArgumentError(
            f"loop(): the batches of one window cannot be concatenated ({error}). Pass join=, a function that makes one "
            "batch of a list of them (padding them to one length, for example)."
        ) from error
    return tree.tree_unflatten(merged, spec)
