"""torch's random generators."""

from __future__ import annotations

import torch
from torch import Tensor


def random_state() -> list[Tensor]:
    """State of torch's random generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(state: list[Tensor]) -> None:
    """Put torch's random generators into this state."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])
