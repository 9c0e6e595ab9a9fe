"""Lightning under its older name, ``pytorch_lightning``: ``Trainer(callbacks=[GradscopeCallback()])``."""

from __future__ import annotations

from pytorch_lightning.callbacks import Callback

from gradscope.integrations.lightning_hooks import LightningHooks

__all__ = ["GradscopeCallback"]


class GradscopeCallback(LightningHooks, Callback):  # type: ignore[misc] # Lightning is not installed where types are checked
    """Shows what is inside the gradients of a fit; ``LightningHooks`` says how, and which options there are."""
