"""What hangs on a forward: hooks on its layers' outputs, on the model's outputs, and where else parameters are used."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module, RNNBase, RNNCellBase
from torch.utils import _pytree as pytree

from gradscope.capture.call import Call
from gradscope.capture.compiled import COMPILED, compiler_was_used, inside_compiled
from gradscope.capture.forward import Forward, Made
from gradscope.capture.fused import fuse
from gradscope.capture.hook import hang
from gradscope.capture.kept import Kept, kept_plainly
from gradscope.capture.layout import BatchDim
from gradscope.capture.noted import may_wait, note
from gradscope.capture.plan import Plan
from gradscope.capture.recomputed_call import RecomputedCall, as_positional
from gradscope.capture.recurrent_call import RecurrentCall
from gradscope.capture.tagging import OutputHook, hang_first
from gradscope.capture.tensors import batch_size, tensors_in
from gradscope.capture.uses import hook_operators
from gradscope.contributions.gram import SharedBlocks
from gradscope.rules.recompute import outputs_of

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder


_ONCE = {1}


class Forwarding:
    """Follows the model's calls, one at a time.

    Args:
        recorder: where figures go.
        begins: called when a forward with a graph begins.

    Attributes:
        forward: the call that is under way, or None.
    """

    def __init__(self, recorder: Recorder, begins: Callable[[], None]) -> None:
        self.recorder = recorder
        self.forward: Forward | None = None
        self._begins = begins
        self._count = 0
        self._latest: weakref.ref[Forward] | None = None
        #: In which the last forward with a graph began.
        self._thread = 0

    def before_model(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the model: a forward begins."""
        if not self.recorder.attached or torch._C._current_graph_task_id() != -1:
            return
        if not torch.is_grad_enabled():
            # An evaluation, perhaps in a thread beside the training, whose forward or backward must not notice.
            if self._thread == get_ident():
                self.drop()
            return
        self.recorder.backward = None
        self.drop()
        self._thread = get_ident()
        self._begins()
        samples = batch_size(args, kwargs, self.recorder.options.batch_dim)
        if samples and self.recorder.attached:
            self._count += 1
            self.forward = Forward(samples, root=True, number=self._count)
            self.forward.notes = samples > 1 and may_wait(self.recorder)
            # Weakly: what belongs to a graph goes when the graph goes.
            self._latest = weakref.ref(self.forward)

    def drop(self) -> None:
        """Forget the call that is under way. It failed: what it holds of its graph would hold that for good."""
        if self.forward is not None:
            self.forward.let_go()
        self.forward = None

    def after_layer(
        self, plan: Plan, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Forward hook of a layer that owns parameters."""
        begun = self.forward
        if begun is not None and begun.notes:
            if note(self.recorder, begun, plan, args, kwargs, output):
                return None
            self.enrol_noted(begun)
        if self.recorder.tagging is not None:
            return self._keep_likewise(self.recorder.tagging, plan, args, kwargs)
        if not torch.is_grad_enabled():
            self._expect(plan)
            return None
        outputs = (output,) if type(output) is Tensor else outputs_of(output)
        tensors = [t for t in outputs if t.requires_grad]
        leaves = [leaf for leaf in plan.leaves.values() if leaf.wanted]
        if not tensors or not leaves or (self.recorder.gathered is not None and not self.recorder.gathered.find(plan)):
            return None
        in_backward = torch._C._current_graph_task_id() != -1
        forward = self._current_forward(args, kwargs, in_backward)
        if forward is None:
            return None
        joined = None
        if self.recorder.options.fused and not in_backward:
            joined = fuse(self.recorder, plan, forward, args, kwargs, output)
            tensors = tensors if joined is None else [joined]
        forward.seen.extend(weakref.ref(tensor) for tensor in tensors)
        if not in_backward:
            self._note_frontier(forward, tensors[0].grad_fn, tensors[0].output_nr, tensors[0].shape)
        if forward.samples == 1:
            # All that arrives at a parameter is the only sample's.
            return None
        if in_backward and self._is_repeated(forward, plan):
            return self._keep_likewise(forward, plan, args, kwargs)
        if not self._describes(plan, tensors):
            return None
        if not in_backward:
            forward.keeps.add(plan.name)
            for leaf in leaves:
                forward.uses[leaf.index] = forward.uses.get(leaf.index, 0) + 1
            single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            inputs = [args[0].grad_fn] if single else [tensor.grad_fn for tensor in tensors_in((args, kwargs))]
            forward.made.append((tensors[0].grad_fn, inputs, leaves))
        if joined is not None:
            return joined
        if plan.rule is not None:
            self._hook_call(plan, forward, as_positional(plan.module, args, kwargs), tensors[0])
            return None
        return self._hook_recomputed(plan, forward, args, kwargs, output, tensors)

    @staticmethod
    def _keep_likewise(forward: Forward, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A checkpoint is recomputed: it must save as many tensors as in the forward, ours included."""
        if plan.name in forward.keeps and torch.is_grad_enabled():
            Kept((args, kwargs) if plan.rule is None else as_positional(plan.module, args, kwargs))

    def _expect(self, plan: Plan) -> None:
        """Without a graph inside a forward that has one: a reentrant checkpoint, whose uses come during backward."""
        forward = self.forward
        if forward is None or forward.samples == 1 or torch._C._current_graph_task_id() != -1:
            return
        if self._thread != get_ident():
            return
        if plan.rule is not None or plan.recompute:
            forward.pending[plan.name] = forward.pending.get(plan.name, 0) + 1
            for leaf in plan.leaves.values():
                forward.uses[leaf.index] = forward.uses.get(leaf.index, 0) + 1

    @staticmethod
    def _is_repeated(forward: Forward, plan: Plan) -> bool:
        """Whether a call during backward repeats one whose hooks hang already: a checkpoint that is not reentrant."""
        left = forward.pending.get(plan.name, 0)
        if left:
            forward.pending[plan.name] = left - 1
        return forward.root and not left

    @staticmethod
    def _describes(plan: Plan, tensors: list[Tensor]) -> bool:
        return (plan.rule is not None and len(tensors) == 1) or (plan.recompute and not plan.by_operators)

    def _current_forward(self, args: Any, kwargs: Any, in_backward: bool) -> Forward | None:
        if in_backward:
            return self.recorder.backward.first if self.recorder.backward is not None else None
        self.recorder.backward = None
        if self.forward is None or (not self.forward.root and self.forward.step is not None):
            self._begins()
            samples = batch_size(args, kwargs, self.recorder.options.batch_dim)
            self._count += 1
            self.forward = Forward(samples, root=False, number=self._count) if samples else None
        return self.forward

    def _hook_call(self, plan: Plan, forward: Forward, args: tuple[Any, ...], output: Tensor) -> None:
        call = Call(self.recorder, plan, forward, Kept(args), ())
        forward.hung.append(hang(output, self.recorder.shielded(call.on_grad)))
        if call.rule.saved is not None and kept_plainly(output):
            call.saved = call.rule.saved(output)
        device = output.device.type
        autocast = torch.is_autocast_enabled(device)
        if autocast:
            forward.autocast = torch.get_autocast_dtype(device)
            if not type(plan.module).__module__.startswith("torch.nn."):
                call.autocast = forward.autocast
        made = Made(output.grad_fn, output.output_nr, output.shape)
        self._enrol(forward, call, made, sure=not (self.recorder.guarding or autocast))
        if len(args) == 1 and isinstance(args[0], Tensor):
            self._share(forward, call, args[0], args[0]._version)

    def enrol_noted(self, forward: Forward) -> None:
        """Do for the calls that were noted what could wait."""
        noted, forward.noted = forward.noted, []
        if not noted:
            return
        uses, seen, keeps, prompt = forward.uses, forward.seen, forward.keeps, forward.prompt
        training, samples, graph = self.recorder.model.training, forward.samples, self.recorder.graph
        first, latest, read = None, None, 0
        for call, x, source, version, output, node, number, shape in noted:
            seen.append(output)
            prompt.append(call)
            plan, leaves = call.plan, call.own.values()
            keeps.add(plan.name)
            for leaf in leaves:
                uses[leaf.index] = uses.get(leaf.index, 0) + 1
            forward.made.append((node, (source,), leaves))
            count = forward.calls[plan.name] = forward.calls.get(plan.name, 0) + 1
            call.key = (count, len(shape), training, samples)
            known = plan.layouts.known((graph, call.key))
            if type(known) is BatchDim:
                call.likely = known
            else:
                self._ask_graph(forward, call, Made(node, number, shape))
            # Queries, keys and values read the same tensor.
            if x is not latest or version != read:
                first, latest, read = call, x, version
            elif first is not None:
                call.shared = first.shared = first.shared or SharedBlocks()
        for *_, node, number, shape in reversed(noted):
            if self._note_frontier(forward, node, number, shape):
                break
        if first is not None and latest is not None:
            forward.latest = weakref.ref(latest), read, weakref.ref(first)

    def _enrol(self, forward: Forward, call: Call, made: Made, *, sure: bool) -> None:
        """Give a call its number among its layer's, and ask the graph where it is not known whether its output has samples.

        Args:
            forward: the model's call that it is part of.
            call: it.
            made: its output.
            sure: whether what was learnt of calls of this kind is enough.
        """
        name = call.plan.name
        forward.calls[name] = number = forward.calls.get(name, 0) + 1
        call.key = (number, len(made.shape), self.recorder.model.training, forward.samples)
        if not sure or not call.settled:
            self._ask_graph(forward, call, made)

    def _ask_graph(self, forward: Forward, call: Call, made: Made) -> None:
        """Let the graph say whether a call's output has samples."""
        without = call.without_samples(made.shape)
        recomputed = torch._C._current_graph_task_id() != -1
        if not recomputed and (without or (without is None and (self.recorder.guarding or call.unsure(made.shape)))):
            forward.unbatched.append((call, made, bool(without)))

    def _note_frontier(self, forward: Forward, node: Any, number: int, shape: torch.Size) -> bool:
        """Whether an output has samples; the last one that has is where an inner backward can begin."""
        dim = self.recorder.options.batch_dim
        has_samples = len(shape) > dim and shape[dim] == forward.samples and node is not None
        if has_samples:
            forward.frontier = (node, number)
        return has_samples

    @staticmethod
    def _share(forward: Forward, call: Call, x: Tensor, version: int) -> None:
        """Queries, keys and values read the same tensor: what is computed of it for one of them serves all."""
        latest = forward.latest
        first = latest[2]() if latest is not None and latest[0]() is x and latest[1] == version else None
        if first is None:
            forward.latest = weakref.ref(x), version, weakref.ref(call)
        else:
            call.shared = first.shared = first.shared or SharedBlocks()

    def _hook_recomputed(
        self, plan: Plan, forward: Forward, args: Any, kwargs: Any, output: Any, tensors: list[Tensor]
    ) -> Any:
        kept = Kept((args, kwargs))
        outputs = outputs_of(output)
        call = RecomputedCall(self.recorder, plan, forward, kept, len(outputs), tensors[0].device.type)
        if isinstance(plan.module, (RNNBase, RNNCellBase)):
            positional = as_positional(plan.module, args, kwargs)
            call.closed = RecurrentCall.of(plan, positional, outputs, forward.samples)
        if len(tensors) > 1:
            # One output may come from another (an LSTM cell's h from its c); hooks on aliases see each one's own share.
            output = pytree.tree_map(_alias, output)
        if (call.closed is not None or not plan.checked) and torch._C._current_graph_task_id() == -1:
            forward.recomputed.append(call)
        for which, tensor in enumerate(outputs_of(output)):
            if tensor.requires_grad:
                forward.hung.append(hang(tensor, self.recorder.shielded(_Numbered(call.on_grad, which))))
        return output if len(tensors) > 1 else None

    def after_model(self, module: Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook of the model: its outputs are here, and the graph below them is whole."""
        if not torch.is_grad_enabled():
            return
        forward, self.forward = self.forward, None
        if forward is None or not forward.root or torch._C._current_graph_task_id() != -1:
            return
        self.enrol_noted(forward)
        dim, graph = self.recorder.options.batch_dim, self.recorder.graph
        found = (output,) if type(output) is Tensor else tensors_in(output)
        outputs = [tensor for tensor in found if tensor.requires_grad and tensor.grad_fn is not None]
        for tensor in outputs:
            forward.seen.append(weakref.ref(tensor))
            where, shape = dim, tensor.shape
            if dim >= len(shape) or shape[dim] != forward.samples:
                where = 0 if shape and shape[0] == forward.samples else -1
            if where >= 0:
                forward.ambiguous |= len(shape) == 3 and shape[0] == shape[1] == forward.samples > 1
                hook = OutputHook(self.recorder, forward, forward.outputs, tensor.output_nr, where)
                forward.outputs += 1
                forward.hung.append(hang_first(tensor, self.recorder.shielded(hook.on_grad)))
        if not forward.outputs and forward.frontier is not None:
            node, number = forward.frontier
            hook = OutputHook(self.recorder, forward, 0, number, dim)
            forward.outputs = 1
            node.register_prehook(self.recorder.shielded(hook.on_node))
        if forward.samples > 1:
            hook_operators(self.recorder, forward, outputs)
            if self.recorder.second_pass is not None:
                self.recorder.second_pass.choose(forward)
        if forward.uncovered and compiler_was_used():
            inside = inside_compiled(outputs)
            for leaf in self.recorder.leaves:
                if leaf.index in forward.uncovered and id(leaf.live) in inside:
                    forward.uncovered[leaf.index] = COMPILED
        self._prepare(forward, graph)
        forward.let_go()

    @staticmethod
    def _prepare(forward: Forward, graph: object) -> None:
        """Which of the noted calls are usual in every way.

        Args:
            forward: the model's call, which has ended.
            graph: what the graph was thought to look like when they were noted.
        """
        if forward.graph == graph and not forward.second and set(forward.uses.values()) <= _ONCE:
            for call in forward.prompt:
                if not (call.by_operators or call.plan.layouts.negligible):
                    call.layout = call.likely
            return
        for call in forward.prompt:
            call.prepare()

    def waiting_samples(self) -> int | None:
        """Samples of the last forward that no backward has reached, or None."""
        forward = self._latest() if self._latest is not None else None
        return forward.samples if forward is not None and forward.step is None else None


def _alias(value: Any) -> Any:
    return value.view_as(value) if isinstance(value, Tensor) and value.requires_grad else value


class _Numbered:
    __slots__ = ("function", "number")

    def __init__(self, function: Callable[[int, Tensor], None], number: int) -> None:
        self.function, self.number = function, number

    def __call__(self, grad: Tensor) -> None:
        self.function(self.number, grad)
