"""How a kernel walks over its input."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a kernel walks over its (already padded) input.

    Attributes:
        kernel: size of the kernel per spatial dimension.
        stride: per spatial dimension.
        dilation: per spatial dimension.
        groups: number of channel groups.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def patches(self, x: Tensor, positions: tuple[int, ...]) -> Tensor:
        """Patches ``[n, groups, T, (channels/groups)·∏kernel]`` of a padded input ``[n, channels, *spatial]``.

        Args:
            x: the padded input.
            positions: how many kernel positions per spatial dimension; the output's spatial size.
        """
        x = x.contiguous()
        n, channels = x.shape[:2]
        strides = x.stride()
        size = (n, channels, *positions, *self.kernel)
        walk = tuple(s * step for s, step in zip(strides[2:], self.stride, strict=True))
        reach = tuple(s * step for s, step in zip(strides[2:], self.dilation, strict=True))
        view = x.as_strided(size, (*strides[:2], *walk, *reach))
        dims = len(self.kernel)
        view = view.reshape(n, self.groups, channels // self.groups, *positions, *self.kernel)
        order = (0, 1, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
        return view.permute(order).reshape(n, self.groups, prod(positions), -1)

    def reached(self, x: Tensor, positions: tuple[int, ...]) -> Tensor:
        """The part of a padded input that some position of the kernel reads."""
        for dim, (count, size, step, spread) in enumerate(
            zip(positions, self.kernel, self.stride, self.dilation, strict=True), start=2
        ):
            x = x.narrow(dim, 0, (count - 1) * step + (size - 1) * spread + 1)
        return x
