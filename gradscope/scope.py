"""``watch`` and the one object that users hold: it wires the stages."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TextIO

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from gradscope import reporter
from gradscope.accumulator import OpenWindow
from gradscope.annotation import Annotation, as_annotation
from gradscope.capture.backward import Backward
from gradscope.capture.compiled import COMPILED, compiler_was_used, forget_graphs
from gradscope.capture.model import check_model, find_ignored, find_parameters, find_plans, signature, unwrapped
from gradscope.capture.optimizers import StepWatch, check_optimizers, scale_of, scaler_on_the_stack
from gradscope.capture.options import Options
from gradscope.capture.recorder import Recorder
from gradscope.errors import ClosedScopeError, InvalidArgumentError
from gradscope.moments.microstep import MicroStep
from gradscope.report import Report
from gradscope.runlog import RunLogWriter
from gradscope.state import state_of, windows_of
from gradscope.summary import summarise
from gradscope.window import Window


def watch(
    model: Module,
    *optimizers: Any,
    every: int = 1,
    subsample: int | None = None,
    moments: bool = False,
    second_pass: bool = False,
    ignore: Iterable[str | Module] = (),
    scaler: Any = None,
    batch_dim: int = 0,
    budget: int | None = None,
    keep: int = 100,
) -> Scope:
    """Show what is inside the gradients that these optimizers are about to apply.

    The training loop stays as it is: gradients, parameters, buffers, outputs and the random state are bitwise those of an
    unwatched run.

    Args:
        model: the model that is trained. ``DistributedDataParallel`` and ``torch.compile`` around it are looked through.
        optimizers: those that step its parameters, usually one. A window ends when every optimizer whose parameters received a
            gradient has stepped. Without any, ``Scope.step()`` ends it.
        every: measure only each k-th window.
        subsample: compute squares for this many random samples of each micro-batch only, scaled up without bias.
        moments: elementwise second moments too: variance per element, GSNR, the preconditioned noise scale.
        second_pass: recompute what only recomputation can give sample by sample.
        ignore: names of parameters or modules, or modules, to leave out.
        scaler: the ``GradScaler`` in use; one that is not given is noticed when it steps, and its scale is divided out.
        batch_dim: dimension of the model's inputs and outputs along which samples lie.
        budget: bytes that uses of shared parameters may hold until they are squared; None for no bound.
        keep: number of windows that are kept.

    Raises:
        InvalidArgumentError: an argument cannot work.
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
    if isinstance(ignore, (str, Module)):
        ignore = (ignore,)
    check_model(model)
    options = Options(
        every=every,
        subsample=subsample,
        moments=moments,
        second_pass=second_pass,
        batch_dim=batch_dim,
        budget=budget,
        keep=keep,
    )
    return Scope(unwrapped(model), optimizers, options, tuple(ignore), scaler)


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
        self._model = model
        self._options = options
        self._ignore = ignore
        self._scaler = scaler
        self._windows: deque[Window] = deque(maxlen=options.keep)
        self._index = 0
        self._measured = 0
        self._overheads: deque[float] = deque(maxlen=options.keep)
        self._warnings: dict[str, None] = {}
        self._writers: list[RunLogWriter] = []
        self._streams: list[TextIO] = []
        self._annotation: Annotation | None = None
        self._closed = False
        self._stepped: set[int] = set()
        leaves = find_parameters(model)
        check_optimizers(optimizers, leaves)
        self._ignored = find_ignored(model, leaves, ignore)
        self._build()
        self._watch = StepWatch(optimizers, self._before_step, self._after_step, self._recorder)
        forget_graphs()
        self._started = time.perf_counter()
        self._recorder.attach()

    # -- what users read ----------------------------------------------------------------------------------------------

    @property
    def last(self) -> Report | None:
        """The report of the newest window; None before the first."""
        return self.report(last=1) if self._windows else None

    def report(self, last: int = 20) -> Report:
        """What is inside the gradients of the last windows.

        Args:
            last: how many windows to average, newest first; fewer where there are fewer.

        Raises:
            InvalidArgumentError: ``last`` is below 1.
        """
        _positive("last", last)
        windows = list(self._windows)[-last:]
        overheads = sorted(list(self._overheads)[-last:])
        overhead = overheads[len(overheads) // 2] if overheads else None
        return summarise(self._infos, windows, overhead=overhead, warnings=tuple(self._warnings))

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
        self._annotation = as_annotation(weights, ids, same_samples, self._recorder.waiting_samples())
        self._recorder.same_samples = same_samples

    def step(self) -> Report:
        """Close the window by hand, and return its report: for loops without an optimizer of torch.

        Raises:
            ClosedScopeError: the scope was closed.
        """
        self._check_open()
        self._before_step()
        self._close_window(None)
        return self.report(last=1)

    def log_to(self, target: str | os.PathLike[str] | TextIO) -> None:
        """Write one line per window from now on: JSON lines to a path, or one readable line each to a stream.

        Args:
            target: path of a run log, which ``gradscope report`` and ``gradscope top`` read; one that exists is continued.
                Or a stream such as ``sys.stderr``.

        Raises:
            InvalidRunLogError: the file is something else, or the log of another model.
            OSError: it cannot be opened.
        """
        self._check_open()
        if isinstance(target, (str, os.PathLike)):
            self._writers.append(RunLogWriter(target, self._infos))
        else:
            self._streams.append(target)

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on: the windows' sums and the count of windows, as numbers and strings."""
        return state_of(tuple(self._windows), self._infos, self._index, self._measured)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run of the same model stopped.

        Raises:
            StateMismatchError: the state is of another model, or is none.
        """
        windows = windows_of(state, self._infos)
        self._windows.clear()
        self._windows.extend(windows)
        self._index, self._measured = int(state["index"]), int(state["measured"])
        self._switch()

    # -- life ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take every hook off; figures stay readable. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._watch.close()
        self._recorder.leave()
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> Scope:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<gradscope.Scope of {type(self._model).__name__}, {self._index} windows, {state}>"

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedScopeError("this scope was closed; call gradscope.watch again to go on.")

    def _build(self) -> None:
        leaves = find_parameters(self._model)
        for leaf in leaves:
            leaf.ignored = leaf.info.name in self._ignored
        self._infos = [leaf.info for leaf in leaves]
        self._signature = signature(self._model)
        plans = find_plans(self._model, [leaf for leaf in leaves if not leaf.ignored])
        self._recorder = Recorder(self._model, leaves, plans, self._options, self._take)
        self._open = OpenWindow(leaves, moments=self._options.moments)

    # -- windows ------------------------------------------------------------------------------------------------------

    def _take(self, backward: Backward, steps: list[MicroStep]) -> None:
        """A backward is over."""
        for step in steps:
            if self._annotation is not None and step.arrived:
                problem = self._annotation.apply(step)
                self._annotation = None
                if problem:
                    self._open.notices.append(problem)
            self._recorder.same_samples = None
            if step.samples > 1:
                self._recorder.guarding, self._recorder.calibrated = False, True
        orphan = not backward.forwards and bool(backward.arrivals)
        self._open.add(backward.arrivals, backward.restarted, backward.touched, steps, orphan)
        if orphan and compiler_was_used():
            self._open.problems.update(dict.fromkeys(backward.arrivals, COMPILED))

    def _before_step(self) -> None:
        self._safely(self._recorder.finish_kept)

    def _after_step(self, optimizer: Optimizer) -> None:
        self._safely(lambda: self._stepped_by(optimizer))

    def _stepped_by(self, optimizer: Optimizer) -> None:
        owners = self._watch.owners(self._recorder.leaves)
        self._stepped.add(self._watch.optimizers.index(optimizer))
        needed = {owners[index] for index in self._open.arrived if index in owners}
        if not self._measuring or needed <= self._stepped:
            self._close_window(scaler_on_the_stack())

    @property
    def _measuring(self) -> bool:
        return self._index % self._options.every == 0

    def _close_window(self, found_scaler: Any) -> None:
        if self._measuring:
            if not self._open.steps and not self._open.arrived:
                return
            self._safely(lambda: self._measure(found_scaler))
        self._index += 1
        self._stepped.clear()
        self._open.close_down()
        self._refresh()
        self._switch()
        self._started, self._recorder.seconds = time.perf_counter(), 0.0

    def _measure(self, found_scaler: Any) -> None:
        began = time.perf_counter()
        scaler = self._scaler if self._scaler is not None else found_scaler
        if self._scaler is None and found_scaler is not None and found_scaler.is_enabled():
            self._warnings["a GradScaler was noticed and its scale divided out; pass it: watch(..., scaler=scaler)"] = (
                None
            )
        for failure in self._recorder.failures:
            self._open.notices.append(f"gradscope failed inside a hook: {failure}")
        self._recorder.failures.clear()
        adam = self._watch.adam(self._recorder.leaves) if self._options.moments else {}
        window = self._open.close(self._index + 1, scale=scale_of(scaler), adam=adam)
        self._measured += 1
        if self._windows:
            self._windows[-1] = without_tensors(self._windows[-1])
        self._windows.append(window)
        now = time.perf_counter()
        own = self._recorder.seconds + now - began
        overhead = own / max(now - self._started - own, 1e-9)
        self._overheads.append(overhead)
        self._publish(window, overhead)

    def _publish(self, window: Window, overhead: float) -> None:
        for writer in self._writers:
            self._safely(partial(writer.write, window, overhead=overhead))
        if self._streams:
            line = reporter.log_line(self.report())
            for stream in self._streams:
                self._safely(partial(print, line, file=stream, flush=True))

    def _refresh(self) -> None:
        """Look again: parameters may have been added, replaced, frozen or unfrozen."""
        if signature(self._model) == self._signature:
            return
        self._recorder.leave()
        self._build()
        for writer in self._writers:
            self._safely(partial(writer.declare, self._infos))

    def _switch(self) -> None:
        """Hooks are on in windows that are measured, and off in all others."""
        if self._measuring:
            recorder, regular = self._recorder, self._measured % self._options.guard_every == 0
            recorder.guarding = not recorder.calibrated or regular or bool(self._open.trust.suspects)
            self._open.trust.suspects.clear()
            if recorder.guarding:
                for leaf in recorder.leaves:
                    leaf.probe = None
            recorder.attach()
        else:
            self._recorder.detach()

    def _safely(self, function: Callable[[], Any]) -> None:
        """Run something of ours in the middle of the user's loop: what fails is said in the report."""
        try:
            function()
        except Exception as error:  # the user's training must go on whatever fails here
            self._warnings[f"gradscope failed: {type(error).__name__}: {str(error)[:300]}"] = None


def without_tensors(window: Window) -> Window:
    """The window without what only the newest one keeps."""
    bare = {
        name: replace(sums, sample_sq_norms=None, variance=None, signal=None)
        for name, sums in window.parameters.items()
    }
    return replace(window, parameters=bare, weights=None)
