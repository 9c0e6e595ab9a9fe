"""How long something takes, on the CPU or on a CUDA device."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch


class NoDeviceError(Exception):
    """The device that was asked for is not here."""


class Clock(ABC):
    """Times calls."""

    @abstractmethod
    def seconds(self, function: Callable[[], object]) -> float:
        """How long the call takes, with all the work that it starts."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until the device has nothing to do."""


class WallClock(Clock):
    """For work that is done when the call returns."""

    def seconds(self, function: Callable[[], object]) -> float:
        started = time.perf_counter()
        function()
        return time.perf_counter() - started

    def settle(self) -> None:
        """Nothing is outstanding."""


class CudaClock(Clock):
    """CUDA events before and after, on the current stream: the device's time, its waiting for Python included."""

    def seconds(self, function: Callable[[], object]) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.settle()
        before.record()
        function()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3

    def settle(self) -> None:
        torch.cuda.synchronize()


def clock_for(device: torch.device) -> Clock:
    """The clock of a device.

    Raises:
        NoDeviceError: torch cannot use it.
    """
    if device.type == "cpu":
        return WallClock()
    if device.type == "cuda" and torch.cuda.is_available():
        return CudaClock()
    raise NoDeviceError(
        f"the benchmark was asked for {device}, but torch {torch.__version__} finds no such device here. Run it on a "
        "machine with a GPU and a CUDA build of torch, or use `make bench` for the CPU."
    )
