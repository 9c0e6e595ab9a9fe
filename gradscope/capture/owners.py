"""Whose the rows of an operator's output are, found out once: the host waits for the device to say."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class Owners:
    """Whose row is whose along one dimension.

    Args:
        sample_of_row: int64, one for each.
    """

    def __init__(self, sample_of_row: Tensor) -> None:
        self.sample_of_row = sample_of_row
        self._of_copies: dict[int, Tensor] = {}

    def of(self, copies: int) -> Tensor:
        """Whose each copy is, where an operator copies beside the operand's own dimension: all rows of one are one sample's.

        Raises:
            ValueError: if they are not.
        """
        if copies not in self._of_copies:
            table = self.sample_of_row.reshape(copies, -1) if copies else self.sample_of_row.unsqueeze(1)
            if not bool((table == table[:, :1]).all()):
                raise ValueError("samples share what it copies")
            self._of_copies[copies] = table[:, 0]
        return self._of_copies[copies]


def owners_along(table: Tensor, dims: Sequence[int]) -> tuple[int, Owners]:
    """The dimension along which rows are single samples', and whose they are.

    Raises:
        ValueError: if there is none.
    """
    for k, dim in enumerate(dims):
        front = table.movedim(k, 0).reshape(table.shape[k], -1)
        if bool((front == front[:, :1]).all()):
            return dim, Owners(front[:, 0])
    raise ValueError("samples are spread over several dimensions of its output")
