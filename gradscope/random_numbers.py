"""The states of torch's default random generators: the host's, and those of an accelerator that is in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def random_state() -> list[Tensor]:
    """State of each generator: the host's first, then one for each device of the accelerator."""
    accelerator = _accelerator()
    devices = range(accelerator.device_count()) if accelerator is not None else ()
    return [torch.get_rng_state(), *(accelerator.get_rng_state(device) for device in devices)]


def set_random_state(state: Sequence[Tensor]) -> None:
    """Put the generators into the state that ``random_state`` gave."""
    torch.set_rng_state(state[0])
    for device, own in enumerate(state[1:]):
        _accelerator().set_rng_state(own, device)


def has_random_state(state: Sequence[Tensor]) -> bool:
    """Whether the generators are in this state: nothing was drawn since."""
    now = random_state()
    return len(now) == len(state) and all(map(torch.equal, now, state))


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """What is drawn here, on the host or on this device, is drawn again afterwards."""
    kept = device.type != "cpu" and _module(device.type) is not None
    with torch.random.fork_rng(devices=[device] if kept else [], device_type=device.type if kept else None):
        yield


def _accelerator() -> Any:
    """The accelerator's module in torch, or None where there is none, or nothing was done with it yet."""
    found = torch.accelerator.current_accelerator()
    module = None if found is None else _module(found.type)
    if module is None:
        return None
    used = module.is_initialized() if hasattr(module, "is_initialized") else module.device_count() > 0
    return module if used else None


def _module(kind: str) -> Any:
    """The module in torch for devices of a kind, or None where that has no random numbers of its own."""
    module = getattr(torch, kind, None)
    return module if hasattr(module, "get_rng_state") and hasattr(module, "set_rng_state") else None
