"""One model under observation: hooks, the window that is being filled, and what becomes of it when it closes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer

from gradscope.accumulator import OpenWindow
from gradscope.annotation import Annotation
from gradscope.capture.backward import Backward
from gradscope.capture.compiled import (
    COMPILED,
    COMPILED_BACKWARD,
    backward_was_compiled,
    compiler_was_used,
    forget_graphs,
)
from gradscope.capture.model import Structure, find_ignored, find_parameters, find_plans, signature
from gradscope.capture.normalization import normalization_leaves
from gradscope.capture.optimizers import StepWatch, check_optimizers, scale_of, scaler_on_the_stack
from gradscope.capture.options import Options
from gradscope.capture.recorder import Recorder
from gradscope.contributions.choice import Measured
from gradscope.contributions.workspace import Workspace
from gradscope.coverage import NORMALIZATION_ONLY
from gradscope.history import History, Waiting
from gradscope.increments import IncrementRecorder, IncrementWindow
from gradscope.moments.microstep import MicroStep
from gradscope.outlets import Outlets
from gradscope.ranks import PARTS_ONLY, Company, check_whole, distributed

GONE = (
    "its .grad was gone when backward ended, or had been added to before anything of that backward was seen; from the next "
    "window on it is read as it comes"
)
IGNORED = "ignored, as asked"
SCALER_NOTICED = "a GradScaler was noticed and its scale divided out; pass it: watch(..., scaler=scaler)"


class Session:
    """Wires the stages, and decides when a window ends.

    Args:
        model: the user's own model, without wrappers.
        optimizers: those whose steps end windows.
        options: what the user asked for.
        ignore: names and modules to leave out.
        scaler: the user's GradScaler, or None.

    Attributes:
        history: the windows that were closed.
        outlets: where a line of each goes.
        annotation: what the user said of the micro-step whose backward comes next.
    """

    def __init__(
        self, model: Module, optimizers: Sequence[Any], options: Options, ignore: tuple[str | Module, ...], scaler: Any
    ) -> None:
        self.model = model
        self.options = options
        self.history = History(options.keep)
        self.outlets = Outlets()
        self.annotation: Annotation | None = None
        self._scaler = scaler
        self._stepped: set[int] = set()
        self.company: Company | None = None
        leaves = find_parameters(model)
        check_optimizers(optimizers, leaves)
        check_whole(model, leaves, capture=options.capture is not False)
        self.ignored = find_ignored(model, leaves, ignore)
        self.workspace = Workspace(Measured() if options.tune else None, options.budget)
        self._build()
        self._watch = StepWatch(optimizers, self.before_step, self._after_step, self.recorder)
        self._note_turns()
        forget_graphs()
        self._started = time.perf_counter()
        self._find_company()
        self.recorder.attach()

    def _find_company(self) -> None:
        """Where other processes train with this one, windows are those of all their samples."""
        if self.company is None and distributed():
            self.company = Company(self)

    def _build(self) -> None:
        leaves = find_parameters(self.model)
        asked = {leaf.index for leaf in leaves}
        if self.options.capture == "normalization":
            asked = set(normalization_leaves(self.model, leaves))
        for leaf in leaves:
            leaf.ignored = "" if leaf.index in asked else NORMALIZATION_ONLY
            leaf.ignored = PARTS_ONLY if leaf.sharded and self.options.capture is False else leaf.ignored
            leaf.ignored = IGNORED if leaf.info.name in self.ignored else leaf.ignored
        self.parameters = [leaf.info for leaf in leaves]
        self._signature, self._structure = signature(self.model), Structure(self.model)
        self.recorder: Recorder | IncrementRecorder
        if self.options.capture is False:
            self.recorder = IncrementRecorder(self.model, leaves, self.options, self._take, self._begin_forward)
            self.opened: OpenWindow = IncrementWindow(leaves)
            return
        plans = find_plans(self.model, [leaf for leaf in leaves if not leaf.ignored])
        self.recorder = Recorder(
            self.model, leaves, plans, self.options, self._take, self._begin_forward, self.workspace
        )
        self.opened = OpenWindow(leaves, moments=self.options.moments, workspace=self.workspace)

    def _note_turns(self) -> None:
        owners = self._watch.owners(self.recorder.leaves) if len(self._watch.optimizers) > 1 else {}
        for leaf in self.recorder.leaves:
            leaf.in_turn = leaf.index in owners

    def end(self) -> None:
        """Take every hook off, tell the other ranks, and close what is written to."""
        self.unhook()
        if self.company is not None:
            self.company.leave()
        for write in self.outlets.rest(lambda: self.history.report(self.parameters)):
            self._safely(write)
        self.outlets.close()

    def unhook(self) -> None:
        """Take every hook off, and touch nothing else: in a forked process files and connections are its parent's."""
        self._watch.close()
        self.recorder.leave()

    def add_optimizer(self, optimizer: Optimizer) -> None:
        """One more optimizer steps this model; those that it replaces are let go."""
        optimizers = [*self._watch.without(optimizer), optimizer]
        self._watch.close()
        self._stepped.clear()
        self._watch = StepWatch(optimizers, self.before_step, self._after_step, self.recorder)
        self._note_turns()

    @property
    def silent(self) -> bool:
        """Whether another rank writes and prints for all."""
        return self.company is not None and self.company.silent

    @property
    def measuring(self) -> bool:
        """Whether the open window is one that ``every`` measures."""
        return self.history.index % self.options.every == 0

    # -- a backward, a step -------------------------------------------------------------------------------------------

    def _take(self, backward: Backward, steps: list[MicroStep]) -> None:
        """A backward is over."""
        for step in steps:
            if self.annotation is not None and step.arrived:
                problem = self.annotation.apply(step)
                self.annotation = None
                if problem:
                    self.opened.notices.append(problem)
            self.recorder.same_samples = None
            if step.samples > 1:
                self.recorder.guarding, self.recorder.calibrated = False, True
        orphan = not backward.forwards and bool(backward.arrivals)
        if self.company is not None:
            orphan = self.company.took(backward, orphan)
        self.opened.add(backward.arrivals, backward.restarted, backward.touched, steps, orphan)
        for leaf in backward.lost:
            self.opened.arrived.add(leaf.index)
            self.opened.problems[leaf.index] = GONE
        if orphan and not self.opened.steps and compiler_was_used():
            self.opened.problems.update(dict.fromkeys(backward.arrivals, COMPILED))

    def before_step(self) -> None:
        """Parameters are about to change: what waits for a further backward is finished now."""
        if self.measuring:
            self._safely(self.recorder.finish_kept)

    def _after_step(self, optimizer: Optimizer) -> None:
        self._safely(lambda: self._stepped_by(optimizer))

    def _stepped_by(self, optimizer: Optimizer) -> None:
        if len(self._watch.optimizers) > 1 and self.measuring:
            owners = self._watch.owners(self.recorder.leaves)
            self._stepped.add(self._watch.optimizers.index(optimizer))
            if not {owners[index] for index in self.opened.arrived if index in owners} <= self._stepped:
                return
        self.close_window(scaler_on_the_stack() if self.measuring else None)

    def _begin_forward(self) -> None:
        """Some optimizers have stepped, and the next forward begins: the others will not step for this window any more."""
        if self._stepped and self.measuring:
            self._safely(self._close_with_some)
        if self.company is None:
            self._safely(self._find_company)
        self._safely(self.opened.look_again)
        if isinstance(self.recorder, Recorder) and self.recorder.attached:
            self._safely(self.recorder.look_where)
            # Optimizers that take turns freeze each other's parameters.
            self._safely(self.recorder.hang_wanted)

    def _close_with_some(self) -> None:
        owners = self._watch.owners(self.recorder.leaves)
        for index in self.opened.arrived:
            if index in owners and owners[index] not in self._stepped:
                self.opened.problems[index] = "its optimizer did not step: this gradient is part of no update"
        self.close_window()

    # -- the end of a window ------------------------------------------------------------------------------------------

    def close_window(self, found_scaler: Any = None) -> None:
        """End the open window and begin the next.

        Args:
            found_scaler: a GradScaler that was seen stepping the optimizer.
        """
        following = self.history.index + 1
        if not self.measuring and following % self.options.every:
            # Neither this window nor the next one is measured: no hooks hang, and nothing was filled.
            self.history.index = following
            self._stepped.clear()
            return
        if self.measuring:
            met = self.company is not None and self.company.pending
            if not self.opened.steps and not self.opened.arrived and not met:
                # What failed in every backward leaves nothing to report but the failure.
                for failure in dict.fromkeys(self.recorder.failures):
                    self.history.warn(f"gradscope failed inside a hook: {failure}")
                if backward_was_compiled():
                    self.history.warn(COMPILED_BACKWARD)
                self._stepped.clear()
                return
            self._safely(lambda: self._measure(found_scaler))
        self.history.index = following
        self._stepped.clear()
        self._started = time.perf_counter()
        self.opened.close_down()
        self._refresh()
        self.switch()
        # The next window pays for its own beginning.
        self.recorder.seconds = time.perf_counter() - self._started

    def _measure(self, found_scaler: Any) -> None:
        began = time.perf_counter()
        scaler = self._scaler if self._scaler is not None else found_scaler
        if self._scaler is None and found_scaler is not None and found_scaler.is_enabled():
            self.history.warn(SCALER_NOTICED)
        self.note_failures()
        adam = self._watch.adam(self.recorder.leaves) if self.options.moments else {}
        index, scale, window = self.history.index + 1, scale_of(scaler), None
        if not self._may_wait():
            closer = self.opened.close if self.company is None else self.company.close
            window = closer(index, scale=scale, adam=adam)
        now = time.perf_counter()
        own = self.recorder.seconds + now - began
        if self.company is not None:
            own += self.company.take_seconds()
        overhead = own / max(now - self._started - own, 1e-9)
        if window is None:
            self.opened.weigh(adam)
            taken = self.opened.taken()
            close = partial(taken.close, index, scale=scale, adam={})
            own += time.perf_counter() - now
            self.history.postpone(Waiting(taken, close, own, max(now - self._started - own, 0.0), taken.nbytes))
        else:
            self.history.add(window, overhead)
        for write in self.outlets.writes(window, overhead, lambda: self.history.report(self.parameters)):
            self._safely(write)

    def _may_wait(self) -> bool:
        """Whether the window's figures can be computed when somebody looks at them.

        Not those of a guard window, which says what the next one has to do; nor where more is needed than will still be there.
        """
        plain = type(self.opened) is OpenWindow and self.company is None
        return plain and not self.outlets.prompt and all(step.spot is None for step in self.opened.steps)

    def note_failures(self) -> None:
        """What failed in hooks is said of the open window."""
        for failure in self.recorder.failures:
            self.opened.notices.append(f"gradscope failed inside a hook: {failure}")
        self.recorder.failures.clear()

    def _refresh(self) -> None:
        """Look again: parameters may have been added, replaced, frozen or unfrozen."""
        # What is frozen or unfrozen keeps its place in the recorder.
        fixed = isinstance(self.recorder, Recorder)
        if fixed and self._structure.unchanged:
            return
        # What fully_shard has gathered and not let go of is no other parameter.
        known = {id(leaf.live): id(leaf.parameter) for leaf in self.recorder.leaves}
        found = tuple((known.get(key, key), fixed or wanted) for key, wanted in signature(self.model))
        if found != tuple((key, fixed or wanted) for key, wanted in self._signature):
            self._rebuild()

    def look_again(self) -> None:
        """What was put around the model, or in the place of its parameters, is watched from the forward on that begins now."""
        self._rebuild()
        self.switch()

    def _rebuild(self) -> None:
        self.recorder.leave()
        self._build()
        self._note_turns()
        if self.company is not None:
            self.company.draw()
        if self.options.capture is False and any(leaf.sharded for leaf in self.recorder.leaves):
            self.history.warn(PARTS_ONLY)
        self._safely(partial(self.outlets.declare, self.parameters))

    def switch(self) -> None:
        """Hooks are on in windows that are measured, and off in all others."""
        if not self.measuring:
            self.recorder.detach()
            return
        recorder, regular = self.recorder, self.history.measured % self.options.guard_every == 0
        recorder.guarding = not recorder.calibrated or regular or bool(self.opened.trust.suspects)
        self.opened.trust.suspects.clear()
        if recorder.guarding:
            for leaf in recorder.leaves:
                leaf.probe = None
            if self.company is not None:
                self.company.draw()
        else:
            for leaf in recorder.leaves:
                leaf.narrow(self.history.measured)
            if self.company is not None:
                self.company.narrow(self.history.measured)
        recorder.attach()

    def _safely(self, function: Callable[[], Any]) -> None:
        """Run something of ours in the middle of the user's loop: what fails is said in the report."""
        try:
            function()
        except Exception as error:  # the user's training must go on whatever fails here
            self.history.warn(f"gradscope failed: {type(error).__name__}: {str(error)[:300]}")
