"""``watch`` and the one object that users hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from gradscope.annotation import as_annotation
from gradscope.capture.model import check_model, unwrapped
from gradscope.capture.options import Options
from gradscope.errors import ClosedScopeError, InvalidArgumentError
from gradscope.report import Report
from gradscope.session import Session
from gradscope.state import state_of, windows_of
from gradscope.versions import check_torch


def watch(
    model: Module,
    *optimizers: Any,
    every: int = 1,
    capture: bool | Literal["normalization"] = True,
    subsample: int | None = None,
    moments: bool = False,
    fused: bool = False,
    second_pass: bool = False,
    ignore: Iterable[str | Module] = (),
    scaler: Any = None,
    batch_dim: int = 0,
    budget: int | None = None,
    keep: int = 100,
    gather_norms: bool = False,
    tune: bool = False,
) -> Scope:
    """Show what is inside the gradients that these optimizers are about to apply.

    The training loop stays as it is: gradients, parameters, buffers, outputs and the random state are bitwise those of an
    unwatched run. In guard windows (the first, then one in sixteen) a second backward runs inside the first one; hooks that you
    hung on intermediate tensors run once more there.

    Args:
        model: the model that is trained. ``DistributedDataParallel`` and ``torch.compile`` around it are looked through.
        optimizers: those that step its parameters, usually one. A window ends when every optimizer whose parameters received a
            gradient has stepped. Without any, ``Scope.step()`` ends it.
        every: measure only each k-th window.
        capture: True measures samples one by one. False hooks no layer and costs next to nothing: the noise of the window is
            estimated from how its micro-steps differ, two or more of them. ``"normalization"`` measures the samples in
            normalisation layers alone, whose noise scale predicts the model's in transformers.
        subsample: compute squares for this many random samples of each micro-batch only, scaled up without bias.
        moments: elementwise second moments too: variance per element, GSNR, the preconditioned noise scale.
        fused: in ordinary windows, layers that multiply build each sample's gradient once, for ``.grad`` and for the figures:
            faster, and the only setting under which ``.grad`` may differ from an unwatched run's, by rounding.
        second_pass: recompute what only recomputation can give sample by sample.
        ignore: names of parameters or modules, or modules, to leave out.
        scaler: the ``GradScaler`` in use; one that is not given is noticed when it steps, and its scale is divided out.
        batch_dim: dimension of the model's inputs and outputs along which samples lie.
        budget: bytes that uses of shared parameters may hold until they are squared, and that an intermediate result beyond one
            sample's gradient may take; None for no bound.
        keep: number of windows that are kept.
        gather_norms: under ``torch.distributed``, have every rank know the gradient norms of all ranks' samples, not only of its
            own. All other figures are always those of all ranks.
        tune: where several exact algorithms would do, time them once for each shape instead of estimating their cost. Figures of
            two runs then agree to rounding only, unless the second goes on from the first one's ``state_dict()``.

    Raises:
        InvalidArgumentError: an argument cannot work.
        UnsupportedTorchError: torch is too old.
        UnwatchableModelError: hooks could not see into the model.
        AlreadyWatchedError: an open scope watches it.
        ForeignOptimizerError: an optimizer steps none of its parameters.
    """
    _positive("every", every)
    _positive("keep", keep)
    if subsample is not None:
        _positive("subsample", subsample)
    if budget is not None and budget < 0:
        raise InvalidArgumentError(f"watch: budget is a number of bytes, got {budget}.")
    if not isinstance(batch_dim, int) or batch_dim < 0:
        raise InvalidArgumentError(f"watch: batch_dim is a dimension from 0 on, got {batch_dim!r}.")
    _check_capture(capture, subsample=subsample, moments=moments, second_pass=second_pass, budget=budget)
    if isinstance(ignore, (str, Module)):
        ignore = (ignore,)
    check_torch(torch.__version__)
    check_model(model)
    options = Options(
        every=every,
        capture=capture,
        subsample=subsample,
        moments=moments,
        fused=fused,
        second_pass=second_pass,
        batch_dim=batch_dim,
        budget=budget,
        keep=keep,
        gather_norms=gather_norms,
        tune=tune,
    )
    return Scope(unwrapped(model), optimizers, options, tuple(ignore), scaler)


def _check_capture(capture: Any, **by_sample: Any) -> None:
    if not isinstance(capture, bool) and capture != "normalization":
        raise InvalidArgumentError(f'watch: capture is True, False or "normalization", got {capture!r}.')
    asked = next((f"{name}={value!r}" for name, value in by_sample.items() if value not in (None, False)), "")
    if capture is False and asked:
        raise InvalidArgumentError(
            f"watch: capture=False sees no sample, so {asked} has nothing to work on. Leave out one of the two."
        )


def _positive(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgumentError(f"watch: {name} is a whole number from 1 on, got {value!r}.")


class Scope:
    """A model under observation; made by ``watch``.

    Usable as a context manager, which closes it.
    """

    def __init__(
        self, model: Module, optimizers: Sequence[Any], options: Options, ignore: tuple[str | Module, ...], scaler: Any
    ) -> None:
        self._session = Session(model, optimizers, options, ignore, scaler)
        self._closed = False

    # -- what users read ----------------------------------------------------------------------------------------------

    @property
    def last(self) -> Report | None:
        """The report of the newest window; None before the first."""
        return self.report(last=1) if self._session.history.windows else None

    def report(self, last: int = 20) -> Report:
        """What is inside the gradients of the last windows.

        Args:
            last: how many windows to average, newest first; fewer where there are fewer.

        Raises:
            InvalidArgumentError: ``last`` is below 1.
        """
        _positive("last", last)
        return self._session.history.report(self._session.parameters, last)

    def annotate(
        self,
        weights: Tensor | Sequence[float] | None = None,
        ids: Sequence[Any] | None = None,
        *,
        same_samples: bool | None = None,
    ) -> None:
        """Say what the samples of the next micro-step weigh and what they are called, before its backward.

        Args:
            weights: ``uᵢ > 0``, one per sample: token counts, say.
            ids: one name per sample, shown where samples stand out.
            same_samples: where several calls of the model share the next backward, whether they saw the same samples
                (siamese branches: True) or different ones (real and generated batches: False).

        Raises:
            InvalidAnnotationError: a weight is zero, negative or not finite, or the lengths do not fit the samples.
            ClosedScopeError: the scope was closed.
        """
        self._check_open()
        recorder = self._session.recorder
        self._session.annotation = as_annotation(weights, ids, same_samples, recorder.forwarding.waiting_samples())
        recorder.same_samples = same_samples

    def step(self) -> Report:
        """Close the window by hand, and return its report: for loops without an optimizer of torch.

        Raises:
            ClosedScopeError: the scope was closed.
        """
        self._check_open()
        self._session.before_step()
        self._session.close_window()
        return self.report(last=1)

    def log_to(self, target: Any, *, every: int | None = None, depth: int | None = None) -> None:
        """Write figures there from now on, and what is left at ``close()``.

        Args:
            target: a path: a run log, one JSON line per window, which ``gradscope report`` and ``gradscope top`` read; one that
                exists is continued. Or a stream such as ``sys.stderr``: one readable line. Or the experiment tracker that you
                have: a ``SummaryWriter``, a run of wandb, MLflow or trackio (or the module, with its run), an object with
                ``log_metrics(figures, step=...)``. Or a function, which is called with the dictionary of figures.
            every: how many measured windows apart; None is 1 for streams and 10 for trackers. A run log gets every window.
            depth: how far layers are opened for trackers, as in ``Report.groups``; None takes blocks.

        Raises:
            InvalidArgumentError: nothing can be written there, or the tracker has not been started.
            InvalidRunLogError: the file is something else, or the log of another model.
            OSError: it cannot be opened.
        """
        self._check_open()
        if every is not None:
            _positive("every", every)
        if not self._session.silent:
            self._session.outlets.add(target, self._session.parameters, every, depth)

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on: the windows' sums and the count of windows, as numbers and strings."""
        history = self._session.history
        algorithms = self._session.workspace.choice.found
        return state_of(tuple(history.windows), self._session.parameters, history.index, history.measured, algorithms)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run of the same model stopped.

        Raises:
            StateMismatchError: the state is of another model, or is none.
        """
        windows = windows_of(state, self._session.parameters)
        self._session.workspace.choice.restore(state.get("algorithms", {}))
        self._session.history.resume(windows, int(state["index"]), int(state["measured"]))
        self._session.switch()

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take every hook off; figures stay readable. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._session.end()

    def __enter__(self) -> Scope:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return (
            f"<gradscope.Scope of {type(self._session.model).__name__}, {self._session.history.index} windows, {state}>"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedScopeError("this scope was closed; call gradscope.watch again to go on.")
