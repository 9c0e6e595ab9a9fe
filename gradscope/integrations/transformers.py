"""transformers: ``Trainer(..., callbacks=[GradscopeCallback()])``."""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from gradscope.capture.model import unwrapped
from gradscope.integrations.token_weights import TokenWeights
from gradscope.integrations.watching import Watching
from gradscope.scope import Scope

__all__ = ["GradscopeCallback"]

#: Windows between two logs where the trainer logs by epochs, or not at all.
_EVERY = 10


class GradscopeCallback(TrainerCallback):  # type: ignore[misc] # transformers is not installed where types are checked
    """Watches the model while a ``Trainer`` trains it; a window is what one optimizer step applies.

    Figures go through ``Trainer.log``: into ``state.log_history`` and to everything that the trainer reports to.

    Args:
        log_every: windows between two logs; None is the trainer's ``logging_steps``. What is left is logged at the end.
        depth: how far layers are opened, as in ``Report.groups``; None takes blocks.
        token_weights: where the model's loss turns out to be a mean over tokens, samples weigh what they have of them.
        options: keywords of ``gradscope.watch``, but for ``scaler``, which is the trainer's.

    Raises:
        InvalidArgumentError: an option that ``watch`` does not have.
    """

    def __init__(
        self, *, log_every: int | None = None, depth: int | None = None, token_weights: bool = True, **options: Any
    ) -> None:
        self._watching = Watching(log_every, depth, options)
        self._token_weights = token_weights
        self._weights: TokenWeights | None = None
        self._epoch: EpochGuard | None = None
        self._trainer: Any = None

    @property
    def scope(self) -> Scope | None:
        """The scope of the current training, or of the last one; None before the first."""
        return self._watching.scope

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Watch."""
        self._let_go()
        self._trainer = trainer_on_the_stack()
        scope = self._watching.begin(model, optimizer, scaler=getattr(optimizer, "scaler", None))
        if self._token_weights:
            self._weights = TokenWeights(unwrapped(model), scope)
        if hasattr(self._trainer, "_run_epoch"):
            self._epoch = EpochGuard(self._trainer, self._let_go)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log, if it is time."""
        stops = control.should_training_stop or state.global_step >= state.max_steps
        self._log(args, state, control, rest=stops)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log what is left, if this was the last epoch."""
        if control.should_training_stop:
            self._log(args, state, control, rest=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let go. What reports to files has closed them by now."""
        self._let_go()

    def _log(self, args: Any, state: Any, control: Any, *, rest: bool) -> None:
        by_steps = args.logging_strategy == IntervalStrategy.STEPS and state.logging_steps
        every = self._watching.log_every or (max(int(state.logging_steps), 1) if by_steps else _EVERY)
        asked = control.should_log
        self._watching.log(lambda figures: self._write(state, figures), every, rest=rest)
        # The handler clears it at each log, and the trainer's own is still to come.
        control.should_log = asked

    def _write(self, state: Any, figures: dict[str, float]) -> None:
        if self._trainer is not None:
            # Past a subclass's own log, which may add and clear averages that wait for the trainer's next one.
            Trainer.log(self._trainer, figures)
        else:
            state.log_history.append({**figures, "epoch": state.epoch, "step": state.global_step})

    def _let_go(self) -> None:
        for part in (self._weights, self._epoch):
            if part is not None:
                part.close()
        self._weights = self._epoch = self._trainer = None
        self._watching.end()


class EpochGuard:
    """Stands in for ``Trainer._run_epoch``, since no event tells a callback that training raised or was interrupted.

    Args:
        trainer: the trainer.
        let_go: called when an epoch does not end in the ordinary way.
    """

    def __init__(self, trainer: Any, let_go: Any) -> None:
        self._trainer = trainer
        self._let_go = let_go
        self._inner = trainer._run_epoch
        trainer._run_epoch = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own epoch."""
        try:
            return self._inner(*args, **kwargs)
        except BaseException:
            self._let_go()
            raise

    def close(self) -> None:
        """Put the trainer's own method back."""
        self._trainer.__dict__.pop("_run_epoch", None)


def trainer_on_the_stack() -> Any:
    """The ``Trainer`` that is calling back; None where another loop calls.

    Callbacks are given everything but the trainer, whose ``log`` is the one way to all that it reports to. Only a frame of its
    own code is read: reading another frame's locals would keep them alive.
    """
    code = inspect.getsourcefile(Trainer)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == code:
            found = frame.f_locals.get("self")
            if isinstance(found, Trainer):
                return found
        frame = frame.f_back
    return None
