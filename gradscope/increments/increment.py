"""What one backward adds to one parameter, as numbers."""

from __future__ import annotations

from torch import Tensor

from gradscope.moments.arrival import Arrival


class Increment(Arrival):
    """Two numbers: how large the increment is, and how large ``.grad`` is with it.

    Attributes:
        squared_norm: ``‖Δⱼ‖²``, zero-dimensional, on its device.
        total: ``‖Δ₁ + … + Δⱼ‖²``, likewise: of ``.grad`` as the backward leaves it, before anyone clips or reduces it.
        version: of ``.grad`` at that moment.
        on_top: whether ``.grad`` held something when the window began: zeros, if all is well.
        problem: why its size says nothing, in words; empty where it does.
    """

    def __init__(self, squared_norm: Tensor, total: Tensor, grad: Tensor, *, on_top: bool, problem: str) -> None:
        self._change(squared_norm, squared_norm)
        self.dtype = grad.dtype
        self.total = total
        self.version = grad._version
        self.on_top = on_top
        self.problem = problem
