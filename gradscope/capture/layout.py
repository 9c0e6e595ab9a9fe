"""Which row of a layer's output belongs to which sample: measured with tags, never taken from the shape alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: How far a tagged row may be from its tag times the untagged row, relative to the row and the rows' mean size.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True, slots=True)
class BatchDim:
    """Samples lie along one dimension of the output.

    Attributes:
        dim: which.
        measured: whether tags have shown it; otherwise it was assumed.
    """

    dim: int
    measured: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Samples own rows in any order.

    Attributes:
        sample_of_row: int64 ``[R]``, over the flattened leading dimensions.
        folded: samples come one after another with equally many rows each, or one row of each in turn, as a view of what has a
            dimension of samples gives them: where nothing flowed, rows are known as well.
        known: what was found out about it, so that the host waits for the device once.
    """

    sample_of_row: Tensor
    folded: bool = False
    known: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class NoSamples:
    """Rows cannot be told apart by sample.

    Attributes:
        mixed: samples interact; otherwise the output simply has no batch dimension.
        settled: whether every row was looked at.
    """

    mixed: bool
    settled: bool = True


Layout = BatchDim | Rows | NoSamples


@np.errstate(all="ignore")
def find_layout(
    plain: Tensor, tagged: Tensor, tags: Tensor, lead: torch.Size, candidates: list[int], dtype: torch.dtype
) -> Layout:
    """The layout that the tags show.

    Args:
        plain: row numbers ``[R, k]`` of the output's gradient.
        tagged: the same where sample i's gradient at the model's output was scaled by ``tags[i]``.
        tags: distinct, ``[n]``.
        lead: sizes of the leading dimensions, ``R`` in all.
        candidates: dimensions of size n to try, best guess first.
        dtype: of the gradient, for the tolerance.
    """
    # So few numbers that each operator would cost more on their device than all of them do here.
    rows = _Rows(plain.detach().cpu().numpy(), tagged.detach().cpu().numpy(), TOLERANCE.get(dtype, 1e-2))
    n, marks = tags.shape[0], tags.numpy().astype(rows.size.dtype)
    allowed = rows.tolerance * (rows.size + np.sqrt(np.square(rows.size).mean())) * np.abs(marks).max()
    for dim in candidates:
        if (rows.off(along(marks, lead, dim)) <= allowed).all():
            return BatchDim(dim, measured=True)
    fitting = [index for index in _folds(lead, n) if (rows.off(marks[index]) <= allowed).all()]
    if fitting:
        # Where little flowed, several may fit.
        return Rows(torch.from_numpy(fitting[0]).to(plain.device), folded=len(fitting) == 1)
    # Every row on its own: which tag did it come out with?
    index = np.abs(rows.ratios()[:, None] - marks).argmin(1)
    spacing = np.diff(np.sort(marks)).min() if n > 1 else 1.0
    blurred = rows.tolerance * 0.1 > spacing
    # Rows may fit some tag by chance where samples interact only weakly, so the fit is held to the tags' own spacing.
    allowed = np.minimum(allowed, 0.1 * spacing * rows.size + 0.01 * allowed)
    if not blurred and (rows.off(marks[index]) <= allowed).all():
        return Rows(torch.from_numpy(index).to(plain.device))
    return NoSamples(mixed=bool(candidates) or n == 1)


def _folds(lead: torch.Size, samples: int) -> Iterator[NDArray[Any]]:
    """Whose each row is, ``[R]``, where one dimension holds the samples with something else, before or behind it."""
    for dim, size in enumerate(lead):
        if samples > 1 and size > samples and size % samples == 0:
            numbers = np.arange(size)
            for index in (numbers // (size // samples), numbers % samples):
                yield along(index, lead, dim).copy()


class _Rows:
    """Rows' numbers untagged and tagged, ``[R, k]``; zero where either is not finite.

    Attributes:
        tolerance: how far the two may be from each other, relative to their size.
        size: of the untagged, ``[R]``.
    """

    def __init__(self, plain: NDArray[Any], tagged: NDArray[Any], tolerance: float) -> None:
        finite = (np.isfinite(plain) & np.isfinite(tagged)).all(1, keepdims=True)
        if not finite.all():
            # A sample that overflowed says nothing about the others' places.
            plain, tagged = np.where(finite, plain, 0), np.where(finite, tagged, 0)
        self._plain, self._tagged, self.tolerance = plain, tagged, tolerance
        self.size = self._length(plain)

    @staticmethod
    def _length(rows: NDArray[Any]) -> NDArray[Any]:
        length: NDArray[Any] = np.sqrt(np.square(np.abs(rows)).sum(1))
        return length

    def off(self, row_tags: NDArray[Any]) -> NDArray[Any]:
        """How far each row is from what these tags would have made of it."""
        return self._length(self._tagged - row_tags[:, None] * self._plain)

    def ratios(self) -> NDArray[Any]:
        """With what each row seems to have been multiplied."""
        energy = np.square(self.size)
        ratios: NDArray[Any] = (self._tagged * self._plain.conj()).sum(1).real / np.where(energy > 0, energy, 1)
        return ratios


def along(tags: NDArray[Any], lead: torch.Size, dim: int) -> NDArray[Any]:
    """Each row's entry, of a vector along ``dim`` of the leading dimensions, ``[R]``."""
    shape = [1] * len(lead)
    shape[dim] = lead[dim]
    return np.broadcast_to(tags.reshape(shape), tuple(lead)).reshape(-1)
