"""Samples' gradients built a few at a time, and reduced while they are in cache."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.figures import Figures
from gradscope.contributions.precision import row_squares

#: Up to this many samples are added to a second moment one after another; more are summed first.
FEW = 4


class Reduction:
    """Figures that are filled in as the gradients of some samples exist for a moment.

    Args:
        samples: n.
        probe: random directions, or None.
        moments: whether the elementwise second moment is wanted.
        transposed: whether the gradients come as ``[d, p]`` instead of ``[p, d]``; with one group only.
    """

    def __init__(self, samples: int, probe: Probe | None, *, moments: bool, transposed: bool = False) -> None:
        self.samples = samples
        self.probe = probe
        self.moments = moments
        self.transposed = transposed
        self._squares: list[Tensor] = []
        self._probes: list[Tensor] = []
        self._moment: Tensor | None = None

    def take(self, product: Tensor) -> None:
        """The gradients ``[chunk, groups, rows, columns]`` of the next samples; they are overwritten."""
        if self.probe is not None:
            self._probes.append(self._probe(product, self.probe))
        self._squares.append(row_squares(product))
        if self.moments:
            self._add_squares(product.abs().square_() if product.is_complex() else product.square_())

    def _probe(self, product: Tensor, probe: Probe) -> Tensor:
        rows, columns = (probe.right, probe.left) if self.transposed else (probe.left, probe.right)
        halfway = torch.stack([product.reshape(-1, product.shape[3]).mv(column) for column in columns.unbind()])
        return (halfway.reshape(len(columns), product.shape[0], -1) * rows.unsqueeze(1)).sum(2)

    def _add_squares(self, squares: Tensor) -> None:
        if len(squares) > FEW:
            squares = squares.sum(0, keepdim=True)
        for one in squares:
            self._moment = one.clone() if self._moment is None else self._moment.add_(one)

    def figures(self, shape: torch.Size, algorithm: str) -> Figures:
        """All of it.

        Args:
            shape: the parameter's.
            algorithm: what built the gradients.
        """
        probes = None
        if self.probe is not None:
            probes = torch.cat(self._probes, 1).T
            probes = probes.to(torch.complex128 if probes.is_complex() else torch.float64)
        moment = self._moment
        if moment is not None:
            moment = (moment.mT if self.transposed else moment).reshape(shape).contiguous()
        return Figures(torch.cat(self._squares), probes, moment, algorithm)
