"""What is asked of contributions, and the answer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """The figures of n samples' contributions to one parameter.

    Attributes:
        squares: ``‖hᵢ‖²``, float64 ``[n]``; NaN where only some samples were chosen, and this is none of them.
        probes: ``⟨hᵢ, Rⱼ⟩``, float64 or complex128 ``[n, k]``; None where no probe was given.
        second_moment: ``Σᵢ |hᵢ|²`` elementwise, of the parameter's shape; None unless asked for.
        algorithm: which of several was used; empty where there is only one.
    """

    squares: Tensor
    probes: Tensor | None = None
    second_moment: Tensor | None = None
    algorithm: str = ""
