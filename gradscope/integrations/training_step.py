"""A training step as one call of the model: which parts it calls is the user's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, ModuleDict, ModuleList

from gradscope.capture.hook import Hook
from gradscope.capture.tensors import tensors_in
from gradscope.session import Session


class TrainingStep:
    """Stands in for ``strategy.training_step`` and follows what it calls.

    A training step may call the module itself, whose hooks then see everything, or parts of it. The first part that is called
    begins the forward and says how many samples there are; the outputs of all parts are the forward's outputs.

    Args:
        strategy: Lightning's strategy.
        module: the ``LightningModule``.
        session: what watches it.
    """

    def __init__(self, strategy: Any, module: Module, session: Session) -> None:
        self._strategy = strategy
        self._inner = strategy.training_step
        self._module = module
        self._session = session
        self._inside = self._begun = self._called = False
        self._outputs: list[Tensor] = []
        called = Hook(self._before_module, session)
        self._handles = [module.register_forward_pre_hook(called, prepend=True)]
        for part in called_parts(module):
            before, after = Hook(self._before_part, session), Hook(self._after_part, session)
            self._handles.append(part.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
            self._handles.append(part.register_forward_hook(after))
        strategy.training_step = self

    def close(self) -> None:
        """Put the strategy's own method back."""
        for handle in self._handles:
            handle.remove()
        self._strategy.__dict__.pop("training_step", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The strategy's own training step."""
        self._inside = True
        try:
            output = self._inner(*args, **kwargs)
            if self._begun and not self._called:
                recorder = self._session.recorder
                recorder.shielded(recorder.forwarding.after_model)(self._module, args, kwargs, (self._outputs, output))
            return output
        finally:
            self._inside = self._begun = self._called = False
            self._outputs.clear()

    def _before_module(self, module: Module, args: Any) -> None:
        """The module itself is called: its own hooks see the whole forward."""
        self._called = True

    def _before_part(self, part: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._inside and not self._begun and not self._called and torch.is_grad_enabled():
            # The recorder is made anew where parameters are frozen or added.
            recorder = self._session.recorder
            recorder.shielded(recorder.forwarding.before_model)(part, args, kwargs)
            self._begun = True

    def _after_part(self, part: Module, args: Any, output: Any) -> None:
        if self._begun and not self._called:
            self._outputs += [tensor for tensor in tensors_in(output) if tensor.requires_grad]


def called_parts(module: Module) -> Iterator[Module]:
    """The outermost modules with parameters that can be called: those in lists and dictionaries of modules, one by one."""
    for child in module.children():
        if isinstance(child, (ModuleList, ModuleDict)):
            yield from called_parts(child)
        elif next(child.parameters(), None) is not None:
            yield child
