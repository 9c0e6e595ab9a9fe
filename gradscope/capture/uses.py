"""Finding the uses of parameters that no layer's rule describes, when the model's forward ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.autograd.graph import GradientEdge

from gradscope.capture.call import Call
from gradscope.capture.forward import Forward, Made
from gradscope.capture.graph import Graph, nodes_of_call
from gradscope.capture.meeting import Mixes
from gradscope.capture.operator_use import OperatorUse
from gradscope.capture.recomputed_call import RecomputedCall
from gradscope.capture.saved import runs_once
from gradscope.moments.leaf import Leaf

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder


def hook_operators(recorder: Recorder, forward: Forward, outputs: Iterable[Tensor]) -> None:
    """Hang pre-hooks where parameters without a described layer meet the samples.

    Walking the graph also tells whether it is one whose layouts were measured: where it has another shape, or moves rows by their
    values, samples are tagged again.
    """
    raw: list[Leaf] = []
    if len(forward.uses) < len(recorder.leaves) or 0 in forward.uses.values():
        raw = [leaf for leaf in recorder.leaves if leaf.wanted and not forward.uses.get(leaf.index)]
    shared = [recorder.leaves[index] for index in sorted(recorder.functional)]
    shared = [leaf for leaf in shared if leaf.wanted]
    options = recorder.options
    nodes = (tensor.grad_fn for tensor in outputs)
    graph = Graph(nodes, options.batch_dim, forward.samples, whole=options.second_pass)
    forward.graph = recorder.graph = (graph.kind, forward.samples)
    function = graph.foreign
    if function and not options.second_pass:
        # Its backward may free or overwrite what it saved: run twice, it could end or change the user's training.
        forward.tag_error = (
            f"the backward of {function}, a custom autograd.Function, is not run a second time unless second_pass=True"
        )
    if forward.graph not in recorder.graphs or graph.moves():
        forward.wants_tags = True
    looking = recorder.guarding or forward.wants_tags
    again = looking or forward.packs or recorder.estimated or options.second_pass
    if again and not forward.tag_error and runs_once(graph.nodes):
        forward.tag_error = "a selective activation checkpoint can be run backward only once"
    if not (raw or shared or forward.unbatched or forward.recomputed or looking):
        return
    if looking or shared:
        _look_for_functional_uses(recorder, forward, graph, shared if not looking else recorder.leaves)
    for call, output, certain in forward.unbatched:
        if certain or graph.shared_by_samples(output.grad_fn, output.shape, forward.samples):
            _hook_unbatched(recorder, forward, graph, call, output)
    for recomputed in forward.recomputed:
        _prefer_operators(recorder, forward, graph, recomputed)
    for leaf in raw:
        node = graph.accumulators.get(id(leaf.live))
        if node is not None:
            _hook_leaf(recorder, forward, graph, leaf, node, set())
    for plan in recorder.plans:
        if plan.by_operators and any(leaf.index in forward.uncovered for leaf in plan.leaves.values()):
            plan.by_operators = False


def _prefer_operators(recorder: Recorder, forward: Forward, graph: Graph, call: RecomputedCall) -> None:
    """A module without a rule need not be recomputed where the operators inside it are known."""
    if call.closed is not None and not call.closed.intact():
        call.closed = None
    if call.closed is not None and call.closed.half is None:
        return
    leaves = [leaf for leaf in call.plan.leaves.values() if leaf.wanted]
    nodes = [graph.accumulators.get(id(leaf.live)) for leaf in leaves]
    for leaf, node in zip(leaves, nodes, strict=True):
        if node is None or forward.uses.get(leaf.index) != 1:
            return
        rejected = recorder.layouts.rejected.get((leaf.index, forward.graph), set())
        if isinstance(graph.meetings(node, leaf.parameter.shape, forward.samples, set(), rejected), str):
            return
    call.by_operators = call.plan.by_operators = True
    call.closed = None
    for leaf, node in zip(leaves, nodes, strict=True):
        forward.uses[leaf.index] = 0
        _hook_leaf(recorder, forward, graph, leaf, node, set())


def _look_for_functional_uses(recorder: Recorder, forward: Forward, graph: Graph, leaves: Iterable[Leaf]) -> None:
    """A parameter that its layer reads, and that is read elsewhere as well (a head that multiplies with the table)."""
    owned: set[tuple[Any, int]] = set()
    for output, inputs, own in forward.made:
        nodes = {graph.accumulators.get(id(leaf.live)) for leaf in own} - {None}
        owned.update(nodes_of_call(output, inputs, nodes))
    for leaf in leaves:
        node = graph.accumulators.get(id(leaf.live)) if leaf.wanted and forward.uses.get(leaf.index) else None
        if node is None:
            continue
        if any(edge not in owned for edge in graph.consumers.get(node, ())):
            recorder.functional.add(leaf.index)
            _hook_leaf(recorder, forward, graph, leaf, node, owned)


def _hook_leaf(
    recorder: Recorder, forward: Forward, graph: Graph, leaf: Leaf, node: Any, owned: set[tuple[Any, int]]
) -> None:
    rejected = recorder.layouts.rejected.get((leaf.index, forward.graph), set())
    meetings = graph.meetings(node, leaf.parameter.shape, forward.samples, owned, rejected)
    if isinstance(meetings, str):
        forward.uncovered[leaf.index] = meetings
        if isinstance(meetings, Mixes):
            forward.interacting.add(leaf.index)
        return
    forward.uses[leaf.index] = forward.uses.get(leaf.index, 0) + len(meetings)
    for number, meeting in enumerate(meetings):
        use = OperatorUse(
            recorder, forward, meeting, leaf, None, ("operator", leaf.index, number, meeting.place, forward.graph)
        )
        _hang(recorder, use, meeting.node)


def _hook_unbatched(recorder: Recorder, forward: Forward, graph: Graph, call: Call, output: Made) -> None:
    node = output.grad_fn
    if node is None:
        return
    rejected = recorder.layouts.rejected.get((call.plan.name, forward.graph), set())
    meetings = graph.meetings(node, output.shape, forward.samples, set(), rejected)
    if isinstance(meetings, str):
        return
    call.runs_once()
    call.by_operators = True
    for leaf in call.wanted().values():
        forward.uses[leaf.index] += len(meetings) - 1
    made_by = GradientEdge(node, output.output_nr)
    for number, meeting in enumerate(meetings):
        key = ("operator", call.plan.name, *call.key, number, meeting.place, forward.graph)
        use = OperatorUse(recorder, forward, meeting, call, made_by, key)
        _hang(recorder, use, meeting.node)


def _hang(recorder: Recorder, use: OperatorUse, node: Any) -> None:
    node.register_prehook(recorder.shielded(use.on_node))
