"""Tensors inside what models take and return."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a nested structure of sequences, mappings, named tuples and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def batch_size(args: tuple[Any, ...], kwargs: Mapping[str, Any], batch_dim: int) -> int | None:
    """Number of samples: the size along ``batch_dim`` of the first input tensor that has that dimension.

    A size of one is passed over where another input has more: positions and time steps are often given once for all samples.
    """
    first = args[0] if args else None
    if type(first) is Tensor and first.dim() > batch_dim and first.shape[batch_dim] != 1:
        return first.shape[batch_dim]
    single: int | None = None
    for value in (*args, *kwargs.values()):
        if isinstance(value, PackedSequence):
            return int(value.batch_sizes[0])
        for tensor in tensors_in(value):
            if tensor.dim() > batch_dim:
                if tensor.shape[batch_dim] != 1:
                    return tensor.shape[batch_dim]
                single = 1
    return single
