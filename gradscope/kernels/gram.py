"""Squared norms of sums of outer products from Gram matrices of positions, of which no element reaches memory."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gradscope.kernels import loaded
from gradscope.kernels.loaded import addresses, check, check_chosen, tile, up

#: Elements between what two threads write.
APART = 64

#: Fewer samples than so many for each thread leave threads without work, unless they share them.
SHARED = 4

#: Elements of scratch memory from which on a kernel would leave the cache that it counts on.
MOST = 1 << 22


class Gram:
    """``Σ_{s,t} ⟨aₛ, aₜ⟩⟨bₛ, bₜ⟩`` for each sample.

    Args:
        first: a, ``[n, T, d]``.
        second: b, ``[n, T, p]``.
        count: of how many samples; all by default.
        vector: bytes of a vector; by default the widest that this processor has.

    Attributes:
        scratch: elements of scratch memory that it takes.
        threads: how many of torch's take part.
    """

    __slots__ = ("_apart", "_count", "_factors", "_plan", "_vector", "scratch", "threads")

    def __init__(self, first: Tensor, second: Tensor, count: int | None = None, vector: int = loaded.VECTOR) -> None:
        first, second = (factor if factor.stride(2) == 1 else factor.contiguous() for factor in (first, second))
        self._factors = (first, second)
        self._vector = vector
        shapes = (first.shape, first.stride(), second.shape, second.stride())
        self._plan = plan = _plan(*shapes, tile(first.dtype, vector)[0])
        self._count = first.shape[0] if count is None else count
        threads = torch.get_num_threads()
        # A sample is a thread's own, where there are as many; threads that would have none share the panels of each.
        few = self._count % threads > 0 and self._count < SHARED * threads
        self._apart = few and self._count * plan.each + threads * plan.aside <= MOST
        tasks = self._count * (plan.panels if self._apart else 1)
        self.threads = max(1, min(threads, tasks))
        owners = self._count if self._apart else self.threads
        self.scratch = owners * plan.each + self.threads * plan.aside

    def run(
        self, scratch: Tensor, *, directions: tuple[Tensor, Tensor] | None = None, sums: Tensor | None = None,
        chosen: Tensor | None = None, least: float = 0.0,
    ) -> tuple[Tensor, int]:  # fmt: skip
        """The sums, what they would be if nothing cancelled, and what lies along directions; and how many sums have cancelled.

        Args:
            scratch: memory of the factors' dtype with anything in it.
            directions: left ``[p]`` and right ``[d]``, contiguous.
            sums: memory for ``Σₜ bₜ``, ``[n, p]``, contiguous; only beside directions.
            chosen: the samples that are summed, int64, contiguous, as many as was said; all by default.
            least: a sum that is no more than this part of its size without cancellation has cancelled.

        Returns:
            float64 ``[3, n]``: the sums, NaN where a sample was not chosen; ``(Σₜ ‖aₜ‖‖bₜ‖)²``, likewise;
            ``Σₜ ⟨aₜ, right⟩⟨bₜ, left⟩`` of all samples, anything without directions.
        """
        first, count = self._factors[0], self._count
        enough = scratch.numel() >= self.scratch and scratch.dtype is first.dtype
        check(enough, "Gram sums", scratch.shape, first.shape)
        check_chosen(chosen, count, first.shape[0], "Gram sums")
        return self._run(scratch, self._plan.each, directions, sums, chosen, count, least)

    def look(self, directions: tuple[Tensor, Tensor], sums: Tensor | None = None) -> Tensor:
        """``Σₜ ⟨aₜ, right⟩⟨bₜ, left⟩`` alone, float64 ``[n]``; arguments as for ``run``."""
        scratch = self._factors[0].new_empty(self.threads * self._plan.aside)
        return self._run(scratch, 0, directions, sums, None, 0, 0.0)[0][2]

    def _run(
        self, scratch: Tensor, each: int, directions: tuple[Tensor, Tensor] | None, sums: Tensor | None,
        chosen: Tensor | None, count: int, least: float,
    ) -> tuple[Tensor, int]:  # fmt: skip
        (first, second), plan = self._factors, self._plan
        n, p = first.shape[0], second.shape[2]
        left, right = (0, 0) if directions is None else addresses(directions, (p, first.shape[2]), first)
        if sums is not None:
            fits = sums.shape == (n, p) and sums.is_contiguous() and sums.dtype is first.dtype
            check(fits, "Gram sums", sums.shape, second.shape)
        found = torch.empty(3 * n + 3 * count * plan.panels, dtype=torch.float64, device="cpu")
        lost: int = loaded.compiled().gram(
            self._vector, first.dtype == torch.float64, self.threads, self._apart and count > 0, plan.numbers,
            first.data_ptr(), second.data_ptr(), left, right, 0 if sums is None else sums.data_ptr(), found.data_ptr(),
            scratch.data_ptr(), each * first.itemsize, plan.aside * first.itemsize,
            0 if chosen is None else chosen.data_ptr(), count, plan.panels, least,
        )  # fmt: skip
        return found[: 3 * n].view(3, n), lost


class _Plan(NamedTuple):
    """What the kernel is told.

    Attributes:
        numbers: sizes and steps.
        panels: of a Gram matrix.
        each: elements that a sample's factors take, turned.
        aside: elements that a thread needs for what lies along directions.
    """

    numbers: bytes
    panels: int
    each: int
    aside: int


@lru_cache(maxsize=4096)
def _plan(x: torch.Size, x_steps: tuple[int, ...], y: torch.Size, y_steps: tuple[int, ...], width: int) -> _Plan:
    check(x[:2] == y[:2], "Gram sums", x, y)
    numbers = struct.pack("8n", *x, y[2], x_steps[0], y_steps[0], x_steps[1], y_steps[1])
    padded = up(x[1], width)
    return _Plan(numbers, padded // width, up(padded * (x[2] + y[2]), APART), up(x[1] + y[2], APART))
