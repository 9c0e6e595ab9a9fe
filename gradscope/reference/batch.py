"""The samples of a nested batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from gradscope.errors import InvalidArgumentError


def sample_count(batch: Any) -> int:
    """Number of samples: the common size of dimension 0 of the batch's tensors.

    Raises:
        InvalidArgumentError: there is no tensor, or their sizes differ.
    """
    sizes = {leaf.shape[0] for leaf in tree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(sizes) != 1 or 0 in sizes:
        found = f"sizes {sorted(sizes)}" if sizes else "no tensor with a dimension"
        raise InvalidArgumentError(
            "The batch must be a nested structure of tensors that all have the samples along dimension 0; found "
            f"{found}. Leave out or expand what is not per sample."
        )
    return int(sizes.pop())


def take(batch: Any, rows: slice | Sequence[int] | Tensor) -> Any:
    """The batch of only these samples; what is no tensor with a dimension is passed on as it is."""
    index = rows if isinstance(rows, slice) else torch.as_tensor(rows, device="cpu")

    def of(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.dim()):
            return leaf
        return leaf[index if isinstance(index, slice) else index.to(leaf.device)]

    return tree.tree_map(of, batch)
