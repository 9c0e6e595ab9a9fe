"""What the user asked for at ``watch``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of one scope; ``watch`` documents them."""

    every: int = 1
    capture: bool | Literal["normalization"] = True
    subsample: int | None = None
    moments: bool = False
    fused: bool = False
    second_pass: bool = False
    batch_dim: int = 0
    budget: int | None = None
    keep: int = 100
    gather_norms: bool = False
    tune: bool = False
    guard_every: int = 16
