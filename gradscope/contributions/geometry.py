"""How a kernel walks over its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a kernel walks over its input.

    Attributes:
        kernel: size of the kernel per spatial dimension.
        stride: per spatial dimension.
        dilation: per spatial dimension.
        groups: number of channel groups.
        padding: zeros on both sides of each spatial dimension that the input does not hold yet; empty where it holds all.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding: tuple[int, ...] = ()

    @property
    def zeros(self) -> tuple[int, ...]:
        """The padding of each spatial dimension, also where there is none."""
        return self.padding or (0,) * len(self.kernel)

    def unfold(
        self, x: Tensor, first: int, positions: tuple[int, ...], memory: Callable[[str, Sequence[int], Tensor], Tensor]
    ) -> Tensor:
        """Patches ``[n·groups, (channels/groups)·∏kernel, T]`` of a padded input ``[n, channels, *spatial]``.

        Args:
            x: the padded input.
            first: place of the first kernel position along the first spatial dimension.
            positions: how many kernel positions per spatial dimension.
            memory: what gives ``(purpose, shape, like)`` to write them to.
        """
        n, channels = x.shape[:2]
        strides = x.stride()
        walk = tuple(s * step for s, step in zip(strides[2:], self.stride, strict=True))
        reach = tuple(s * step for s, step in zip(strides[2:], self.dilation, strict=True))
        begin = x.narrow(2, first * self.stride[0], 1)
        # Positions lie innermost, as they do in the input: copying rows of them is several times as fast as gathering patches.
        view = begin.as_strided((n, channels, *self.kernel, *positions), (*strides[:2], *reach, *walk))
        patches = memory("patches", view.shape, x).copy_(view)
        return patches.view(n * self.groups, -1, prod(positions))

    def reached(self, x: Tensor, positions: tuple[int, ...]) -> Tensor:
        """The part of a padded input that some position of the kernel reads."""
        for dim, (count, size, step, spread) in enumerate(
            zip(positions, self.kernel, self.stride, self.dilation, strict=True), start=2
        ):
            x = x.narrow(dim, 0, (count - 1) * step + (size - 1) * spread + 1)
        return x
