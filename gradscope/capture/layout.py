"""Which row of a layer's output belongs to which sample: measured with tags, never taken from the shape alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
    """

    sample_of_row: Tensor


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
    n, tags = tags.shape[0], tags.to(plain.device)
    finite = (plain.isfinite() & tagged.isfinite()).all(1, keepdim=True)
    if not bool(finite.all()):
        # A sample that overflowed says nothing about the others' places.
        plain, tagged = plain.where(finite, torch.zeros_like(plain)), tagged.where(finite, torch.zeros_like(tagged))
    size = plain.abs().square().sum(1).sqrt()
    allowed = TOLERANCE.get(dtype, 1e-2) * (size + size.square().mean().sqrt()) * tags.abs().max()
    for dim in candidates:
        row_tags = along(tags, lead, dim).to(plain.dtype)
        if bool(((tagged - row_tags.unsqueeze(1) * plain).abs().square().sum(1).sqrt() <= allowed).all()):
            return BatchDim(dim, measured=True)
    if not candidates and n > 1 and len(lead) == 1 and lead[0] % n == 0:
        # Samples folded into one dimension with something else, before or behind it.
        rows = torch.arange(lead[0], device=plain.device)
        for index in (rows // (lead[0] // n), rows % n):
            row_tags = tags.to(plain.dtype)[index]
            if bool(((tagged - row_tags.unsqueeze(1) * plain).abs().square().sum(1).sqrt() <= allowed).all()):
                return Rows(index)
    # Every row on its own: which tag did it come out with?
    energy = size.square()
    ratio = (tagged * plain.conj()).sum(1).real / torch.where(energy > 0, energy, torch.ones_like(energy))
    index = (ratio.unsqueeze(1) - tags.to(ratio.dtype)).abs().argmin(1)
    off = (tagged - tags.to(plain.dtype)[index].unsqueeze(1) * plain).abs().square().sum(1).sqrt()
    spacing = (tags.sort().values.diff().min() if n > 1 else tags.new_tensor(1.0)).to(ratio.dtype)
    blurred = TOLERANCE.get(dtype, 1e-2) * 0.1 > spacing
    # Rows may fit some tag by chance where samples interact only weakly, so the fit is held to the tags' own spacing.
    allowed = torch.minimum(allowed, 0.1 * spacing * size + 0.01 * allowed)
    if not bool(blurred) and bool((off <= allowed).all()):
        return Rows(index)
    return NoSamples(mixed=bool(candidates) or n == 1)


def along(tags: Tensor, lead: torch.Size, dim: int) -> Tensor:
    """The tag of each row where samples lie along ``dim`` of the leading dimensions, ``[R]``."""
    shape = [1] * len(lead)
    shape[dim] = lead[dim]
    return tags.reshape(shape).expand(lead).reshape(-1)
