"""What the Lightning callback does, apart from the name under which Lightning was installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gradscope.integrations.training_step import TrainingStep
from gradscope.integrations.watching import Watching
from gradscope.scope import Scope


class LightningHooks:
    """Watches a ``LightningModule`` while it is fitted; a window is what one optimizer step applies.

    Figures go to all of the trainer's loggers and to ``trainer.callback_metrics``, where other callbacks may monitor them; they
    are part of the trainer's checkpoints, so that a resumed fit goes on.

    Args:
        log_every: windows between two logs; None is the trainer's ``log_every_n_steps``. What is left is logged at the end.
        depth: how far layers are opened, as in ``Report.groups``; None takes blocks.
        options: keywords of ``gradscope.watch``, but for ``scaler``, which is the trainer's.

    Raises:
        InvalidArgumentError: an option that ``watch`` does not have.
    """

    def __init__(self, *, log_every: int | None = None, depth: int | None = None, **options: Any) -> None:
        self._watching = Watching(log_every, depth, options)
        self._step: TrainingStep | None = None

    @property
    def scope(self) -> Scope | None:
        """The scope of the current fit, or of the last one; None before the first."""
        return self._watching.scope

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Watch."""
        self._let_go()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scope = self._watching.begin(pl_module, *trainer.optimizers, scaler=scaler)
        if pl_module.automatic_optimization:
            self._step = TrainingStep(trainer.strategy, pl_module, scope._session)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Log, if it is time."""
        self._log(trainer, rest=False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what is left, and let go."""
        self._log(trainer, rest=True)
        self._let_go()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same when the fit raises or is interrupted."""
        self._log(trainer, rest=True)
        self._let_go()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Nothing stays behind."""
        self._let_go()

    def state_dict(self) -> dict[str, Any]:
        """Part of the trainer's checkpoint."""
        return self._watching.state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """From the trainer's checkpoint; taken over when the fit starts."""
        self._watching.resume(state_dict)

    def _log(self, trainer: Any, *, rest: bool) -> None:
        def write(figures: dict[str, float]) -> None:
            # Where Lightning puts its own metrics of this batch.
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=step)
            trainer.callback_metrics.update(
                {name: torch.tensor(value, device="cpu") for name, value in figures.items()}
            )

        self._watching.log(write, self._watching.log_every or max(trainer.log_every_n_steps, 1), rest=rest)

    def _let_go(self) -> None:
        if self._step is not None:
            self._step.close()
            self._step = None
        self._watching.end()
