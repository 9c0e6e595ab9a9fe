"""What the inner backward left at one output: a few numbers, kept until the same gradient comes by untagged."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.capture.layout import BatchDim, Layout, NoSamples, Rows, find_layout

#: How many rows of one sample are summed, with random factors, where samples lie along one dimension and have at least so many.
#: Two numbers for every row of every layer would undo some of what activation checkpoints save.
GROUP = 32


class RowProbe:
    """Two random numbers for each row of a layer's output gradient: enough to recognise the row's tag.

    Args:
        shape: the gradient's.
        rows: how many leading dimensions make up a row's index.
        like: for dtype and device.
        generator: private.
    """

    def __init__(self, shape: torch.Size, rows: int, like: Tensor, generator: torch.Generator) -> None:
        self.lead = shape[:rows]
        real = torch.float64 if like.dtype in (torch.float64, torch.complex128) else torch.float32
        directions = torch.randn(shape[rows:].numel(), 2, generator=generator, dtype=real, device="cpu").to(like.device)
        self.directions = directions.to(like.dtype) if like.is_complex() else directions

    def __call__(self, grad: Tensor) -> Tensor:
        """Numbers ``[R, 2]`` of a gradient."""
        rows = grad.reshape(self.lead.numel(), self.directions.shape[0]).to(self.directions.dtype)
        return rows @ self.directions


class TaggedRows:
    """Numbers of one output's tagged gradient: of each row, or of each group of one sample's rows.

    Args:
        grad: the first gradient to come.
        rows: how many leading dimensions make up a row's index.
        samples: n.
        generator: private.
        every_row: keep each row's numbers, since samples may lie anywhere.

    Attributes:
        lead: sizes of the numbers' leading dimensions.
        dim: where samples lie in the gradient; None where each row has numbers of its own.
    """

    __slots__ = ("_factors", "_seen", "_whole", "dim", "lead", "probe")

    def __init__(
        self, grad: Tensor, rows: int, samples: int, generator: torch.Generator, *, every_row: bool = False
    ) -> None:
        self._whole = self.lead = grad.shape[:rows]
        self.probe = RowProbe(grad.shape, rows, grad, generator)
        dims = [dim for dim, size in enumerate(self._whole) if size == samples]
        others = self._whole.numel() // samples if dims else 0
        self.dim = dims[0] if len(dims) == 1 and others >= GROUP and not every_row else None
        if self.dim is not None:
            # No mere signs: where all rows of a group are alike, these would cancel every now and then.
            factors = torch.randn(others, generator=generator, dtype=torch.float64, device="cpu")
            self._factors = factors.to(grad.device, self.probe.directions.dtype)
            self.lead = torch.Size((samples, -(-others // GROUP)))
        self._seen = self.numbers_of(grad)

    def add(self, grad: Tensor) -> None:
        """One more tagged gradient of this output."""
        self._seen = self._seen + self.numbers_of(grad)

    def numbers_of(self, grad: Tensor) -> Tensor:
        """A gradient's numbers, ``[lead.numel(), 2]``."""
        numbers: Tensor = self.probe(grad)
        if self.dim is None:
            return numbers
        table = numbers.reshape(*self._whole, 2).movedim(self.dim, 0).reshape(self.lead[0], -1, 2)
        table = table * self._factors.unsqueeze(1)
        missing = self.lead[1] * GROUP - table.shape[1]
        table = torch.nn.functional.pad(table, (0, 0, 0, missing)) if missing else table
        return table.reshape(self.lead.numel(), GROUP, 2).sum(1)

    def fits(self, plain: Tensor, tags: Tensor, dim: int, tolerance: float) -> bool | None:
        """Whether samples lie along ``dim``; None where a number is not finite, so that nothing can be said."""
        own, where = self.numbers_of(plain), dim if self.dim is None else 0
        if not bool((own.isfinite() & self._seen.isfinite()).all()):
            return None
        shape = [1] * len(self.lead)
        shape[where] = -1
        row_tags = tags.to(own.device, own.dtype).reshape(shape).expand(self.lead).reshape(-1, 1)
        return self._close(row_tags, own, tolerance)

    def fits_rows(self, plain: Tensor, tags: Tensor, tolerance: float) -> bool:
        """Whether each row has the tag given for it, ``[R]``."""
        own = self.probe(plain)
        return self._close(tags.to(own.device, own.dtype).unsqueeze(1), own, tolerance)

    def layout(self, plain: Tensor, tags: Tensor, candidates: list[int], dtype: torch.dtype) -> tuple[Layout, Tensor]:
        """The layout that the tags show, and the numbers of the untagged gradient that it was read from.

        Args:
            plain: the gradient as it came untagged.
            tags: distinct, ``[n]``.
            candidates: dimensions of size n to try, best guess first.
            dtype: of the lowest precision that the gradient has gone through.
        """
        own = self.numbers_of(plain)
        if self.dim is None:
            return find_layout(own, self._seen, tags, self.lead, candidates, dtype), own
        found = find_layout(own, self._seen, tags, self.lead, [0], dtype)
        if isinstance(found, Rows):
            table = found.sample_of_row.reshape(self.lead)
            if not bool((table == table[:, :1]).all()):
                return NoSamples(mixed=True, settled=False), own
            shape = [1] * len(self._whole)
            shape[self.dim] = -1
            return Rows(table[:, 0].reshape(shape).expand(self._whole).reshape(-1)), own
        if isinstance(found, NoSamples):
            # Rows looked at one by one may still be some sample's, in whatever order.
            return NoSamples(mixed=True, settled=False), own
        return type(found)(self.dim, measured=True), own

    def sees_every_sample(self, layout: Layout, own: Tensor) -> bool:
        """Whether a gradient came to some row of each sample, where rows are samples' by their position.

        Args:
            layout: as it was found.
            own: the numbers that it was read from.
        """
        some = (own.detach().abs().sum(1) > 0).cpu()
        if isinstance(layout, BatchDim):
            apart = some.reshape(self.lead).movedim(layout.dim if self.dim is None else 0, 0)
            return bool(apart.reshape(apart.shape[0], -1).any(1).all())
        if not isinstance(layout, Rows) or not layout.folded:
            return False
        owners = layout.sample_of_row.cpu()
        return bool(owners[some].unique().numel() == owners.unique().numel())

    def _close(self, row_tags: Tensor, own: Tensor, tolerance: float) -> bool:
        off = (self._seen - row_tags * own).norm()
        return not bool(off > tolerance * (own.norm() * row_tags.abs().max()))
