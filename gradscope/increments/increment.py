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

    __slots__ = ("on_top", "problem", "total", "version")

    def __init__(self, squared_norm: Tensor, total: Tensor, grad: Tensor, *, on_top: bool, problem: str) -> None:
        self.squared_norm = squared_norm
        self.probe = squared_norm
        self.fresh = None
        self.times = 1
        self.dtype = grad.dtype
        self.total = total
        self.version = grad._version
        self.on_top = on_top
        self.problem = problem
