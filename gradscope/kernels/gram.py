"""Squared norms of sums of outer products from Gram matrices of positions, of which no element reaches memory."""

from __future__ import annotations

import struct
from functools import lru_cache

import torch
from torch import Tensor

from gradscope.kernels import loaded
from gradscope.kernels.loaded import addresses, check, tile, up

#: Elements between what two threads write.
APART = 64


class Gram:
    """``Σ_{s,t} ⟨aₛ, aₜ⟩⟨bₛ, bₜ⟩`` for each sample.

    Args:
        first: a, ``[n, T, d]``.
        second: b, ``[n, T, p]``.
        vector: bytes of a vector; by default the widest that this processor has.

    Attributes:
        scratch: elements of scratch memory that it takes.
        threads: how many of torch's take part: a sample is one's own.
    """

    __slots__ = ("_each", "_factors", "_numbers", "_vector", "scratch", "threads")

    def __init__(self, first: Tensor, second: Tensor, vector: int = loaded.VECTOR) -> None:
        first, second = (factor if factor.stride(2) == 1 else factor.contiguous() for factor in (first, second))
        self._factors = (first, second)
        self._vector = vector
        self.threads = max(1, min(torch.get_num_threads(), first.shape[0]))
        shapes = (first.shape, first.stride(), second.shape, second.stride())
        self._numbers, self._each = _plan(*shapes, tile(first.dtype, vector)[0])
        self.scratch = self.threads * self._each

    def run(
        self, scratch: Tensor, *, directions: tuple[Tensor, Tensor] | None = None, sums: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The sums; ``(Σₜ ‖aₜ‖‖bₜ‖)²``, which they would be if nothing cancelled; ``Σₜ ⟨aₜ, right⟩⟨bₜ, left⟩`` with directions.

        Args:
            scratch: memory of the factors' dtype with anything in it.
            directions: left ``[p]`` and right ``[d]``, contiguous.
            sums: memory for ``Σₜ bₜ``, ``[n, p]``, contiguous; only beside directions.

        Returns:
            float64 ``[n]`` each.
        """
        squares, uncancelled, probes = self._run(scratch, self._each, directions, sums, squared=True)
        return squares, uncancelled, None if directions is None else probes

    def look(self, directions: tuple[Tensor, Tensor], sums: Tensor | None = None) -> Tensor:
        """``Σₜ ⟨aₜ, right⟩⟨bₜ, left⟩`` alone, float64 ``[n]``; arguments as for ``run``."""
        first, second = self._factors
        each = up(first.shape[1] + second.shape[2] + tile(first.dtype, self._vector)[0], APART)
        scratch = first.new_empty(self.threads * each)
        return self._run(scratch, each, directions, sums, squared=False)[2]

    def _run(
        self,
        scratch: Tensor,
        each: int,
        directions: tuple[Tensor, Tensor] | None,
        sums: Tensor | None,
        *,
        squared: bool,
    ) -> tuple[Tensor, ...]:
        first, second = self._factors
        enough = scratch.numel() >= self.threads * each and scratch.dtype is first.dtype
        check(enough, "Gram sums", scratch.shape, first.shape)
        left, right = (0, 0) if directions is None else addresses(directions, (second.shape[2], first.shape[2]), first)
        if sums is not None:
            fits = (
                sums.shape == (first.shape[0], second.shape[2]) and sums.is_contiguous() and sums.dtype is first.dtype
            )
            check(fits, "Gram sums", sums.shape, second.shape)
        found = torch.empty(3, first.shape[0], dtype=torch.float64)
        loaded.compiled().gram(
            self._vector, first.dtype == torch.float64, self.threads, squared, self._numbers, first.data_ptr(),
            second.data_ptr(), left, right, 0 if sums is None else sums.data_ptr(), found.data_ptr(), scratch.data_ptr(),
            each * first.itemsize,
        )  # fmt: skip
        return found.unbind()


@lru_cache(maxsize=4096)
def _plan(
    x: torch.Size, x_steps: tuple[int, ...], y: torch.Size, y_steps: tuple[int, ...], width: int
) -> tuple[bytes, int]:
    """What the kernel is told, and the elements of scratch memory that each thread needs."""
    check(x[:2] == y[:2], "Gram sums", x, y)
    numbers = struct.pack("8n", *x, y[2], x_steps[0], y_steps[0], x_steps[1], y_steps[1])
    return numbers, up(up(x[1], width) * (x[2] + y[2] + 1) + y[2], APART)
