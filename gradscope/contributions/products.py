"""Samples' gradients built a few at a time, and reduced while they are in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.figures import Figures
from gradscope.contributions.precision import row_squares
from gradscope.contributions.workspace import Workspace
from gradscope.wide import wide_dtype

#: Up to this many samples are added to a second moment one after another; more are summed first.
FEW = 4

#: Rows of a band, at least: thinner products are slow.
ROWS = 64


def pieces(samples: int, room: int) -> int:
    """Samples a piece, so that no piece is larger than the room and all are about as large."""
    return -(-samples // -(-samples // min(room, samples))) if samples else 1


def turned(matrix: Tensor, workspace: Workspace | None = None) -> Tensor:
    """The transposed matrix in memory of its own, or in memory that is lent.

    Of two dimensions, as torch turns it block by block; with the kernel's dimensions apart it takes up to ten times as long.
    """
    if workspace is None:
        return matrix.mT.clone(memory_format=torch.contiguous_format)
    return workspace.lend(torch.Size(matrix.mT.shape), matrix).copy_(matrix.mT)


class Reduction:
    """Figures that are filled in as parts of some samples' gradients exist for a moment.

    Args:
        samples: n.
        size: ``(groups, rows, columns)`` of the gradients.
        probe: random directions, or None.
        moments: whether the elementwise second moment is wanted.
        transposed: whether the gradients come as ``[d, p]`` instead of ``[p, d]``; with one group only.
        like: a tensor of the gradients' dtype and device.
    """

    def __init__(
        self, samples: int, size: tuple[int, int, int], probe: Probe | None, like: Tensor,
        *, moments: bool, transposed: bool = False,
    ) -> None:  # fmt: skip
        self.size = size
        self.transposed = transposed
        self._squares = like.new_zeros(samples, dtype=wide_dtype(like).to_real())
        self._moment = like.new_zeros(size, dtype=like.dtype.to_real()) if moments else None
        self._rows = self._columns = self._probes = None
        if probe is not None:
            rows, self._columns = (probe.right, probe.lefts) if transposed else (probe.left, probe.rights)
            self._rows = rows.reshape(len(self._columns), size[0], size[1])
            self._probes = like.new_zeros(len(self._columns), samples, dtype=wide_dtype(like))

    def multiply(self, left: Tensor, right: Tensor, sample: int, workspace: Workspace) -> None:
        """Build and take the gradients ``left @ right`` of the samples from ``sample`` on, in bands of rows.

        Args:
            left: ``[chunk·groups, rows, T]``.
            right: ``[chunk·groups, T, columns]``.
            sample: the first sample's index.
            workspace: scratch memory.
        """
        many, rows, columns = left.shape[0], left.shape[1], right.shape[2]
        band = pieces(rows, workspace.room(many * columns, left, min(ROWS, rows)))
        for row in range(0, rows, band):
            part = left[:, row : row + band] if band < rows else left
            product = workspace.buffer("product", (many, part.shape[1], columns), left)
            self.take(torch.bmm(part, right, out=product), sample, row)

    def take(self, product: Tensor, sample: int, row: int = 0) -> None:
        """Some rows of some samples' gradients, which are overwritten.

        Args:
            product: ``[chunk·groups, band, columns]``.
            sample: the first sample's index.
            row: the first row's.
        """
        product = product.unflatten(0, (-1, self.size[0]))
        own, band = slice(sample, sample + product.shape[0]), slice(row, row + product.shape[2])
        if self._probes is not None and self._rows is not None and self._columns is not None:
            flat = product.reshape(-1, product.shape[3])
            for probes, rows, column in zip(self._probes, self._rows, self._columns, strict=True):
                met = flat.mv(column).reshape(product.shape[0], -1)
                probes[own] += met.mv(rows[:, band].reshape(-1))
        self._squares[own] += row_squares(product)
        if self._moment is not None:
            squares = product.abs().square_() if product.is_complex() else product.square_()
            for one in squares.sum(0, keepdim=True) if len(squares) > FEW else squares:
                self._moment[:, band] += one

    def figures(self, shape: torch.Size, algorithm: str) -> Figures:
        """All of it.

        Args:
            shape: the parameter's.
            algorithm: what built the gradients.
        """
        moment = self._moment
        if moment is not None:
            moment = (turned(moment[0]) if self.transposed else moment).reshape(shape)
        return Figures(self._squares, None if self._probes is None else self._probes.T, moment, algorithm)
