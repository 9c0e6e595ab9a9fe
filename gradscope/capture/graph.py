"""The autograd graph of one forward: who consumes which parameter, and where it meets the samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from functools import cached_property
from typing import Any

import torch

from gradscope.capture.graph_kind import KINDS, NAMES, Kind, kind_of, look, reads_own_slice
from gradscope.capture.layout_memory import Place
from gradscope.capture.meeting import (
    BY_INDEX,
    BY_ROW,
    COPIES,
    ELEMENTWISE,
    MIXING,
    PRODUCTS,
    Meeting,
    Mixes,
    grows,
    sample_dims,
    size_of,
)  # fmt: skip
from gradscope.kernels import walk
from gradscope.operators import Operator, find_operator

#: How many operators a layer's output may pass through before it is broadcast over the samples.
_SHALLOW = 8

#: How many operators a parameter may pass through before it meets the samples.
LONGEST_CHAIN = 64


class Graph:
    """Consumers of every node that the outputs reach.

    Args:
        outputs: the nodes to start from.
        batch_dim: dimension along which samples are likely to lie.
        samples: n.
        whole: whether nodes that nobody described may be run again, sample by sample.
    """

    def __init__(self, outputs: Iterable[Any], batch_dim: int, samples: int, *, whole: bool = False) -> None:
        self.batch_dim = batch_dim
        self.samples = samples
        self.whole = whole
        self._free: set[Any] = set()
        self._bound: set[Any] = set()
        self._movers: list[Any] = []
        #: Name of a custom ``autograd.Function`` in it that is not torch's own; empty where there is none.
        self.foreign = ""
        #: In the order of the walk, each once.
        self.nodes: dict[Any, None] = {}
        starts = [node for node in outputs if node is not None]
        walked = walk(starts, NAMES)
        if walked is None:
            kinds = self._walk_over(starts)
        else:
            self.nodes, kinds, closer = walked
            for place in closer:
                kinds[place] = self._look_closer(kinds[place], look(kinds[place]))
        #: The same for graphs of one shape: layouts are measured anew where it changes.
        self.kind = hash(tuple(kinds))

    def _walk_over(self, stack: list[Any]) -> list[object]:
        """All nodes that some lead to, and what each does."""
        nodes, kinds, known = self.nodes, list[object](), KINDS
        while stack:
            node = stack.pop()
            if node in nodes:
                continue
            kind = known.get(type(node)) or look(node)
            if kind.ends:
                continue
            nodes[node] = None
            kinds.append(kind.name if kind.plain else self._look_closer(node, kind))
            for source, _ in node.next_functions:
                if source is not None:
                    stack.append(source)
        return kinds

    def _look_closer(self, node: Any, kind: Kind) -> object:
        """What a node does of which more than its name is to be known."""
        if kind.moves:
            self._movers.append(node)
        self.foreign = self.foreign or kind.foreign
        return kind_of(node, self.samples) if kind.detailed else kind.name

    @cached_property
    def consumers(self) -> dict[Any, list[tuple[Any, int]]]:
        """Per node those that it feeds, and as which operand of theirs."""
        found: dict[Any, list[tuple[Any, int]]] = {}
        for node in self.nodes:
            for operand, (source, _) in enumerate(node.next_functions):
                if source is not None:
                    found.setdefault(source, []).append((node, operand))
        return found

    @cached_property
    def accumulators(self) -> dict[int, Any]:
        """Per id of a tensor, the node that adds to its gradient."""
        return {id(source.variable): source for source in self.consumers if hasattr(source, "variable")}

    def moves(self) -> bool:
        """Whether rows are picked or put somewhere by their values, so that what was measured once may not hold again."""
        return any(self._moves_samples(node) for node in self._movers)

    def _moves_samples(self, node: Any) -> bool:
        # Reading rows of a table moves no samples.
        free = all(self.free_of_samples(source) for source, _ in node.next_functions if source is not None)
        return not free and not reads_own_slice(node, self.samples, self.batch_dim)

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
            found = found if isinstance(again, str) else again
        if isinstance(found, str) and rejected and not isinstance(found, Mixes):
            kinds = ", ".join(sorted({place[1] for place in rejected}))
            return Mixes(
                f"samples interact after it, or meet it where that cannot be seen ({kinds}: no row is a single sample's)"
            )
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
                    operator, dims = self._describes(node, operand, own, samples, sure)
                    if dims:
                        maker = None if depth == 0 else source
                        lead = torch.Size(outputs[0][dim] for dim in dims)
                        found.append(
                            Meeting(node, operand, operator, maker, source_nr, own, dims, lead, transposed, place, kind)
                        )
                        continue
                    if kind in MIXING and getattr(node, "_saved_training", True):
                        return Mixes(
                            "batch normalisation in training mode mixes the samples of a batch: use eval mode or GroupNorm, or "
                            "pass ignore=[...]"
                        )
                    if operator is None and any(grows(size, own, samples) for size in outputs):
                        return f"it meets the samples in {kind}, which is not known"
                if depth >= LONGEST_CHAIN:
                    return f"it passes through more than {LONGEST_CHAIN} operators"
                flat = kind == "TBackward0" and depth == 0
                for number, size in enumerate(outputs):
                    stack.append((node, number, size, depth + 1, flat))
        return found if found else "nothing was seen using it"

    def _describes(
        self, node: Any, operand: int, own: torch.Size, samples: int, sure: bool
    ) -> tuple[Operator | None, tuple[int, ...]]:
        """What describes a node's share to one operand, and the dimensions that samples may lie along there."""
        kind, out = node.name(), torch.Size(node._input_metadata[0].shape)
        operator = find_operator(kind)
        if operator is not None and operand in operator.operands:
            dims = sample_dims(kind, operand, own, out, samples, self.batch_dim, sure)
            return operator, () if dims and self._once(kind, node, out, samples) else dims
        if not self.whole or kind in MIXING or len(node._input_metadata) != 1 or not (sure or grows(out, own, samples)):
            return None, ()
        dims = tuple(dim for dim in dict.fromkeys((self.batch_dim, 0)) if dim < len(out) and out[dim] == samples)
        return None, dims or ((0,) if out and out[0] > 1 else ())

    def _passes(self, node: Any, operand: int, own: torch.Size, out: torch.Size) -> bool:
        """Whether nothing but parameters can flow into a node beside this operand."""
        kind = node.name()
        if kind in BY_INDEX or kind in COPIES:
            return False
        for k, (source, _) in enumerate(node.next_functions):
            if k == operand:
                continue
            if source is None:
                # Numbers, buffers or inputs: those that broadcast nothing cannot bring a dimension of samples.
                if kind not in ELEMENTWISE or out != own:
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
            if node in self._bound or bare or node.name() in BY_INDEX or self._copies_for_samples(node):
                self._bound.add(start)
                return False
            stack.extend(source for source in sources if source is not None)
        self._free |= seen
        return True

    def _copies_for_samples(self, node: Any) -> bool:
        """Whether it makes one copy for each sample: from there on rows are samples' (query tokens that are expanded)."""
        if node.name() not in COPIES:
            return False
        out, (source, number) = torch.Size(node._input_metadata[0].shape), node.next_functions[0]
        own = size_of(source, number)
        aligned = (1,) * (len(out) - len(own)) + tuple(own)
        return any(
            mine and size != mine and size % (mine * self.samples) == 0 for size, mine in zip(out, aligned, strict=True)
        )

    def _keeps_its_size(self, node: Any) -> bool:
        """Elementwise with something of no larger size, which may be a number or a buffer."""
        if node.name() not in ELEMENTWISE:
            return False
        out = torch.Size(node._input_metadata[0].shape)
        return any(source is not None and size_of(source, number) == out for source, number in node.next_functions)

    def _once(self, kind: str, node: Any, out: torch.Size, samples: int) -> bool:
        """Whether an operator whose rows might be samples in fact ran once for all of them."""
        return (kind in PRODUCTS or kind in BY_ROW) and self.shared_by_samples(node, out, samples)

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
                if operator is not None and kind not in PRODUCTS + BY_ROW and operand in operator.operands:
                    dims = sample_dims(kind, operand, own, out, samples, self.batch_dim)
                    if dims and (out[dims[0]] == samples or kind in COPIES):
                        continue
                inputs = sum(source is not None for source, _ in node.next_functions)
                if out != own and (inputs != 1 or out.numel() > own.numel() or kind in PRODUCTS + BY_ROW):
                    return False
                stack.append((node, out, depth + 1))
        return True


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
