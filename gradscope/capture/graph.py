"""The autograd graph of one forward: who consumes which parameter, and where it meets the samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Any

import torch

from gradscope.capture.layout_memory import Place
from gradscope.operators import Operator, find_operator

#: How many operators a layer's output may pass through before it is broadcast over the samples.
_SHALLOW = 4

#: How many operators a parameter may pass through before it meets the samples.
LONGEST_CHAIN = 64


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


class Graph:
    """Consumers of every node that the outputs reach.

    Args:
        outputs: the nodes to start from.
        batch_dim: dimension along which samples are likely to lie.
        whole: whether nodes that nobody described may be run again, sample by sample.
    """

    def __init__(self, outputs: Iterable[Any], batch_dim: int, *, whole: bool = False) -> None:
        self.batch_dim = batch_dim
        self.whole = whole
        self.consumers: dict[Any, list[tuple[Any, int]]] = {}
        self.accumulators: dict[int, Any] = {}
        self._free: set[Any] = set()
        self._bound: set[Any] = set()
        seen = set()
        stack = [node for node in outputs if node is not None]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            for operand, (source, _) in enumerate(node.next_functions):
                if source is None:
                    continue
                self.consumers.setdefault(source, []).append((node, operand))
                if hasattr(source, "variable"):
                    self.accumulators[id(source.variable)] = source
                else:
                    stack.append(source)

    def meetings(
        self,
        start: Any,
        shape: torch.Size,
        samples: int,
        owned: Set[tuple[Any, int]],
        rejected: Set[Place] = frozenset(),
    ) -> list[Meeting] | str:
        """Where a tensor without samples meets them, or why that cannot be said.

        Args:
            start: the node that made it.
            shape: the tensor's shape.
            samples: n.
            owned: consumers that some layer's rule describes already.
            rejected: places that looked like meetings before, and where tags showed no samples.
        """
        found = self._walk(start, shape, samples, owned, rejected, single=False)
        if isinstance(found, str):
            # A product of a single row may be a step of a packed sequence that only one sample reaches.
            again = self._walk(start, shape, samples, owned, rejected, single=True)
            return found if isinstance(again, str) else again
        return found

    def _walk(
        self,
        start: Any,
        shape: torch.Size,
        samples: int,
        owned: Set[tuple[Any, int]],
        rejected: Set[Place],
        *,
        single: bool,
    ) -> list[Meeting] | str:
        found: list[Meeting] = []
        stack: list[tuple[Any, int, torch.Size, int, bool]] = [(start, 0, shape, 0, False)]
        seen: set[tuple[Any, int]] = set()
        while stack:
            source, source_nr, own, depth, transposed = stack.pop()
            consumers = self.consumers.get(source, ())
            if depth and not consumers:
                return "it reaches the output without meeting the samples in an operator that is known"
            for node, operand in consumers:
                if (node, operand) in owned or node.next_functions[operand][1] != source_nr or (node, operand) in seen:
                    continue
                seen.add((node, operand))
                kind = node.name()
                outputs = [torch.Size(meta.shape) for meta in node._input_metadata]
                place = (depth, kind, operand, own, outputs[0])
                if place not in rejected and not self._passes(node, operand, own, outputs[0]):
                    sure = single or any(
                        other is not None and other is not source and not self.free_of_samples(other)
                        for other, _ in node.next_functions
                    )
                    operator, dims = self._meets(node, operand, own, samples, sure)
                    if dims:
                        maker = None if depth == 0 else source
                        lead = torch.Size(outputs[0][dim] for dim in dims)
                        found.append(
                            Meeting(node, operand, operator, maker, source_nr, own, dims, lead, transposed, place, kind)
                        )
                        continue
                    if operator is None and any(_grows(size, own, samples) for size in outputs):
                        return f"it meets the samples in {kind}, which is not known"
                if depth >= LONGEST_CHAIN:
                    return f"it passes through more than {LONGEST_CHAIN} operators"
                flat = kind == "TBackward0" and depth == 0
                for number, size in enumerate(outputs):
                    stack.append((node, number, size, depth + 1, flat))
        return found if found else "nothing was seen using it"

    def _meets(
        self, node: Any, operand: int, own: torch.Size, samples: int, sure: bool
    ) -> tuple[Operator | None, tuple[int, ...]]:
        """What describes a node's share to one operand, and the dimensions that samples may lie along there."""
        kind, out = node.name(), torch.Size(node._input_metadata[0].shape)
        operator = find_operator(kind)
        if operator is not None and operand in operator.operands:
            dims = _meets(kind, operand, own, out, samples, self.batch_dim, sure)
            return operator, () if dims and self._once(kind, node, out, samples) else dims
        if (
            not self.whole
            or kind in _MIXING
            or len(node._input_metadata) != 1
            or not (sure or _grows(out, own, samples))
        ):
            return None, ()
        dims = tuple(dim for dim in dict.fromkeys((self.batch_dim, 0)) if dim < len(out) and out[dim] == samples)
        return None, dims or ((0,) if out and out[0] > 1 else ())

    def _passes(self, node: Any, operand: int, own: torch.Size, out: torch.Size) -> bool:
        """Whether nothing but parameters can flow into a node beside this operand."""
        kind = node.name()
        if kind in _BY_INDEX or kind in _COPIES:
            return False
        for k, (source, _) in enumerate(node.next_functions):
            if k == operand:
                continue
            if source is None:
                # Numbers, buffers or inputs: those that broadcast nothing cannot bring a dimension of samples.
                if kind not in _ELEMENTWISE or out != own:
                    return False
            elif not self.free_of_samples(source):
                return False
        return True

    def free_of_samples(self, start: Any) -> bool:
        """Whether a node is computed from parameters alone."""
        stack, seen = [start], set()
        while stack:
            node = stack.pop()
            if node in seen or node in self._free:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                continue
            sources = [source for source, _ in node.next_functions]
            bare = not sources or (None in sources and not self._keeps_its_size(node))
            if node in self._bound or bare or node.name() in _BY_INDEX:
                self._bound.add(start)
                return False
            stack.extend(source for source in sources if source is not None)
        self._free |= seen
        return True

    def _keeps_its_size(self, node: Any) -> bool:
        """Elementwise with something of no larger size, which may be a number or a buffer."""
        if node.name() not in _ELEMENTWISE:
            return False
        out = torch.Size(node._input_metadata[0].shape)
        return any(source is not None and _size(source, number) == out for source, number in node.next_functions)

    def _once(self, kind: str, node: Any, out: torch.Size, samples: int) -> bool:
        """Whether an operator whose rows might be samples in fact ran once for all of them."""
        return (kind in _PRODUCTS or kind in _BY_ROW) and self.shared_by_samples(node, out, samples)

    def shared_by_samples(self, start: Any, shape: torch.Size, samples: int) -> bool:
        """Whether everything that consumes a tensor broadcasts it over the samples: a table of positions, say."""
        stack = [(start, shape, 0)]
        while stack:
            source, own, depth = stack.pop()
            consumers = self.consumers.get(source, ())
            if not consumers or depth > _SHALLOW:
                return False
            for node, operand in consumers:
                kind, out = node.name(), torch.Size(node._input_metadata[0].shape)
                operator = find_operator(kind)
                if operator is not None and kind not in _PRODUCTS + _BY_ROW and operand in operator.operands:
                    dims = _meets(kind, operand, own, out, samples, self.batch_dim)
                    if dims and out[dims[0]] == samples:
                        continue
                inputs = sum(source is not None for source, _ in node.next_functions)
                if out != own and (inputs != 1 or out.numel() > own.numel() or kind in _PRODUCTS + _BY_ROW):
                    return False
                stack.append((node, out, depth + 1))
        return True


_PRODUCTS = ("MmBackward0", "AddmmBackward0", "BmmBackward0")
_BY_INDEX = ("EmbeddingBackward0", "IndexBackward0")
_BY_ROW = (*_BY_INDEX, "ConvolutionBackward0")
_COPIES = ("ExpandBackward0", "RepeatBackward0")
_MIXING = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0", "BatchNormBackward0")
_ELEMENTWISE = ("AddBackward0", "SubBackward0", "MulBackward0", "DivBackward0", "WhereBackward0")


def _size(node: Any, number: int) -> torch.Size:
    return node.variable.shape if hasattr(node, "variable") else torch.Size(node._input_metadata[number].shape)


def _grows(size: torch.Size, own: torch.Size, samples: int) -> bool:
    return len(size) > len(own) and size[0] > 1 and size[0] % samples == 0


def _meets(
    kind: str, operand: int, own: torch.Size, out: torch.Size, samples: int, batch_dim: int, sure: bool = False
) -> tuple[int, ...]:
    """The dimensions of the operator's output that samples may lie along while the operand has none, best guess first.

    A guess from shapes: the tags say which row is whose, and the sums whether all of them were seen. ``sure``: another operand
    depends on inputs for certain, so that the number of rows need not fit (routed tokens, packed sequences).
    """
    if kind in _PRODUCTS:
        first_factor = operand == (1 if kind == "AddmmBackward0" else 0)
        dim = len(out) - (1 if first_factor else 2)
        return (dim,) if sure or out[dim] > 1 else ()
    if kind in _BY_ROW:
        return (0,) if out and out[0] % samples == 0 else ()
    aligned = (1,) * (len(out) - len(own)) + tuple(own)
    dims = [dim for dim in dict.fromkeys((batch_dim, 0, 1)) if dim < len(out) and out[dim] != 1 and aligned[dim] == 1]
    exact = tuple(dim for dim in dims if out[dim] == samples)
    return exact or tuple(dim for dim in dims if out[dim] % samples == 0)


def nodes_of_call(output: Any, inputs: Iterable[Any], accumulators: set[Any]) -> Iterator[tuple[Any, int]]:
    """Edges from the nodes that one layer's call made to these parameters.

    Args:
        output: node of the layer's output.
        inputs: nodes of its inputs; what is older than they are belongs to others.
        accumulators: the parameters' nodes.
    """
    oldest = max(
        (node._sequence_nr() for node in inputs if node is not None and not hasattr(node, "variable")), default=-1
    )
    stack, seen = [output], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for operand, (source, _) in enumerate(node.next_functions):
            if source is None:
                continue
            if source in accumulators:
                yield node, operand
            elif not hasattr(source, "variable") and source._sequence_nr() > oldest:
                stack.append(source)
