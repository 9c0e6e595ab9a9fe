"""What nodes of the autograd graph do to the order of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

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


def moves_rows(node: Any) -> bool:
    """Whether it picks or puts rows by index or by value."""
    return node.name().rstrip("0123456789") in _MOVERS


def foreign(nodes: Iterable[Any]) -> str:
    """Name of a custom ``autograd.Function`` that is not torch's own; empty where there is none."""
    for node in nodes:
        kind = getattr(type(node), "_forward_cls", None)
        if kind is not None and not kind.__module__.startswith(("torch.", "gradscope.")):
            return str(kind.__qualname__)
    return ""


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
