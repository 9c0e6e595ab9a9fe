"""What nodes of the autograd graph do to the order of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

#: Operators that read or write rows by index or by value.
_MOVERS = {
    f"{name}Backward"
    for name in (
        "Index", "IndexSelect", "IndexPut", "IndexAdd", "IndexCopy", "Gather", "Scatter", "ScatterAdd", "ScatterReduce", "Sort",
        "Topk", "Take", "MaskedSelect", "MaskedScatter", "PackPaddedSequence",
    )
}  # fmt: skip


#: What these operators do to the order of rows is in their settings alone.
_SETTINGS = {
    "RollBackward0": ("_saved_shifts", "_saved_dims"),
    "FlipBackward0": ("_saved_dims",),
    "TransposeBackward0": ("_saved_dim0", "_saved_dim1"),
    "PermuteBackward0": ("_saved_dims",),
    "NativeBatchNormBackward0": ("_saved_training",),
    "CudnnBatchNormBackward0": ("_saved_training",),
    "MiopenBatchNormBackward0": ("_saved_training",),
}


def kind_of(node: Any, samples: int) -> object:
    """What a node does, as far as it may decide whose rows are where."""
    kind = node.name()
    names = _SETTINGS.get(kind)
    if names is not None:
        return (kind, *[getattr(node, name, None) for name in names])
    if kind == "SliceBackward0":
        dim = node._saved_dim
        if node._saved_self_sym_sizes[dim] == samples:
            # Batches that are cut and put together again.
            return kind, dim, node._saved_start, node._saved_end
    return kind


class Kind(NamedTuple):
    """What a type of node tells of all its nodes.

    Attributes:
        name: of its operator.
        ends: whether it adds to a tensor and leads on to nothing.
        detailed: whether more than the name decides whose rows are where.
        moves: whether it picks or puts rows by index or by value.
        foreign: name of the custom ``autograd.Function`` that is not torch's own; empty where there is none.
        plain: whether there is nothing to say of it but its name.
    """

    name: str
    ends: bool
    detailed: bool
    moves: bool
    foreign: str
    plain: bool


#: Of the types that torch's own operators have: looking them up takes less than asking each node.
KINDS: dict[type, Kind] = {}

#: Their names; None where they lead on to nothing, and ``...`` where there is more to say.
NAMES: dict[type, Any] = {}


def look(node: Any) -> Kind:
    """The kind of a node."""
    return KINDS.get(type(node)) or _look(node)


def _look(node: Any) -> Kind:
    name, made = node.name(), getattr(type(node), "_forward_cls", None)
    foreign = "" if made is None or made.__module__.startswith(("torch.", "gradscope.")) else str(made.__qualname__)
    moves = name.rstrip("0123456789") in _MOVERS
    detailed = name in _SETTINGS or name == "SliceBackward0"
    plain = not (detailed or moves or foreign)
    kind = Kind(name, hasattr(node, "variable"), detailed, moves, foreign, plain)
    if made is None and name.rpartition("::")[2] == type(node).__name__:
        # Types of functions defined in Python come and go, and operators without a type of their own share one.
        KINDS[type(node)] = kind
        NAMES[type(node)] = None if kind.ends else name if plain else ...
    return kind


def reads_own_slice(node: Any, samples: int, batch_dim: int) -> bool:
    """Whether it reads one entry of each slice: whichever that is, what the slice gets back is that one entry's sample's.

    The last word of each sequence, say: ``x[arange(n), lengths - 1]``, or ``x.gather(1, last)`` with a single entry along 1.
    Slices are those along ``batch_dim`` or the first dimension: one row of a dimension that holds all samples may be anybody's.
    """
    kind, dims = node.name(), {batch_dim, 0}
    try:
        if kind == "GatherBackward0":
            index, dim = node._saved_index, node._saved_dim
            # A negative one may be saved without its sign.
            dim = (dim - (1 << 64) if dim >> 63 == 1 else dim) % max(1, index.dim())
            across = [k for k in dims - {dim} if k < index.dim() and index.shape[k] % samples == 0]
            return bool(across) and index.shape[dim] == 1
        if kind != "IndexBackward0":
            return False
        placed = {dim: index for dim, index in enumerate(node._saved_indices) if index is not None}
    except RuntimeError:  # a checkpoint has packed it, or it is gone
        return False
    if any(index.dtype in (torch.bool, torch.uint8) for index in placed.values()):
        return False
    if torch.broadcast_shapes(*(index.shape for index in placed.values())).numel() != samples:
        return False
    whole = (index for dim, index in placed.items() if dim in dims and index.numel() == samples)
    return any(torch.equal(index.flatten(), torch.arange(samples, device=index.device)) for index in whole)


def foreign(nodes: Iterable[Any]) -> str:
    """Name of a custom ``autograd.Function`` that is not torch's own; empty where there is none."""
    return next((kind.foreign for kind in map(look, nodes) if kind.foreign), "")


def upstream(node: Any) -> Iterator[Any]:
    """The node, and all that its gradient flows on to."""
    stack, seen = [node], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack.extend(source for source, _ in node.next_functions)
