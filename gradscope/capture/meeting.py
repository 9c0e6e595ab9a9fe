"""Where something without samples meets them: facts about autograd's node types and their shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from gradscope.capture.layout_memory import Place
from gradscope.operators import Operator

PRODUCTS = ("MmBackward0", "AddmmBackward0", "BmmBackward0")
BY_INDEX = ("EmbeddingBackward0", "IndexBackward0")
BY_ROW = (*BY_INDEX, "ConvolutionBackward0")
COPIES = ("ExpandBackward0", "RepeatBackward0")
MIXING = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0", "BatchNormBackward0")
ELEMENTWISE = ("AddBackward0", "SubBackward0", "MulBackward0", "DivBackward0", "WhereBackward0")


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """Where something without samples meets the samples.

    Attributes:
        node: the operator's node.
        operand: which operand has no samples.
        operator: how its gradient is shared out; None for a node that nobody described, which can only be run again.
        kind: the node's type.
        source: node that made the operand; None where that is the parameter's own.
        source_nr: which output of it.
        shape: the operand's.
        dims: the output's dimensions that may hold the samples; (0,) where nothing was broadcast.
        lead: sizes of the output along them.
        transposed: the operand is the parameter transposed, and nothing else lies between.
        place: what tells this place from others of the same parameter, in every forward.
    """

    node: Any
    operand: int
    operator: Operator | None
    source: Any
    source_nr: int
    shape: torch.Size
    dims: tuple[int, ...]
    lead: torch.Size
    transposed: bool
    place: Place
    kind: str

    @property
    def name(self) -> str:
        """What the operator is called."""
        return self.kind.removesuffix("0").removesuffix("Backward") if self.operator is None else self.operator.name

    def without_node(self) -> Meeting:
        """The same without the operator's own node."""
        return replace(self, node=None)


class Mixes(str):
    """A reason that also says that samples interact, so that no estimate would mean anything."""


def size_of(node: Any, number: int) -> torch.Size:
    """Shape of one of a node's outputs."""
    return node.variable.shape if hasattr(node, "variable") else torch.Size(node._input_metadata[number].shape)


def grows(size: torch.Size, own: torch.Size, samples: int) -> bool:
    """Whether an output of this size may have a dimension of samples that an operand of size ``own`` has not."""
    return len(size) > len(own) and size[0] > 1 and size[0] % samples == 0


def sample_dims(
    kind: str, operand: int, own: torch.Size, out: torch.Size, samples: int, batch_dim: int, sure: bool = False
) -> tuple[int, ...]:
    """The dimensions of the operator's output that samples may lie along while the operand has none, best guess first.

    A guess from shapes: the tags say which row is whose, and the sums whether all of them were seen. ``sure``: another operand
    depends on inputs for certain, so that the number of rows need not fit (routed tokens, packed sequences).
    """
    if kind in PRODUCTS:
        first_factor = operand == (1 if kind == "AddmmBackward0" else 0)
        dim = len(out) - (1 if first_factor else 2)
        return (dim,) if sure or out[dim] > 1 else ()
    if kind in BY_ROW:
        return (0,) if out and out[0] % samples == 0 else ()
    aligned = (1,) * (len(out) - len(own)) + tuple(own)
    if kind == "RepeatBackward0":
        # Copies may stand beside dimensions of the operand's own (heads, say).
        copies = [size // own_size for size, own_size in zip(out, aligned, strict=True)]
        return tuple(dim for dim, times in enumerate(copies) if times > 1 and times % samples == 0)[:1]
    dims = [dim for dim in dict.fromkeys((batch_dim, 0, 1)) if dim < len(out) and out[dim] != 1 and aligned[dim] == 1]
    exact = tuple(dim for dim in dims if out[dim] == samples)
    if exact or not sure or len(out) <= len(own):
        return exact or tuple(dim for dim in dims if out[dim] % samples == 0)
    return tuple(dim for dim in dims if out[dim] % samples == 0) or (0,)
