"""Everything that hangs on the model while it is watched."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import _StopRecomputationError

from gradscope.capture.backward import Backward, finish_forwards
from gradscope.capture.call import Call
from gradscope.capture.compiled import COMPILED, compiler_was_used, inside_compiled
from gradscope.capture.forward import Forward, Made
from gradscope.capture.hook import Hook
from gradscope.capture.kept import Kept
from gradscope.capture.layout_memory import LayoutMemory
from gradscope.capture.options import Options
from gradscope.capture.plan import Plan
from gradscope.capture.recomputed_call import RecomputedCall, as_positional
from gradscope.capture.second_pass import SecondPass
from gradscope.capture.tagging import OutputHook, register_first
from gradscope.capture.tensors import batch_size, tensors_in
from gradscope.capture.uses import hook_operators
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import MicroStep
from gradscope.rules.recompute import outputs_of

#: Seed of the private generator: two runs over the same data print the same figures.
SEED = 0x6772616473


class Recorder:
    """Hooks on a model, and the micro-step that they are filling.

    Args:
        model: the watched model.
        leaves: its parameters.
        plans: its modules that own parameters.
        options: what the user asked for.
        deliver: called after each backward, with the micro-steps that it finished.
        on_forward: called when a forward with a graph begins.
    """

    def __init__(
        self, model: Module, leaves: list[Leaf], plans: list[Plan], options: Options,
        deliver: Callable[[Backward, list[MicroStep]], None], on_forward: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.model = model
        self.leaves = leaves
        self.plans = plans
        self.options = options
        self.deliver = deliver
        self.on_forward = on_forward
        self.generator = torch.Generator().manual_seed(SEED)
        self.forward: Forward | None = None
        self.tagging: Forward | None = None
        self.backward: Backward | None = None
        self.estimated: set[int] = set()
        self.guarding = True
        self.seconds = 0.0
        self.failures: list[str] = []
        self.kept: list[Forward] = []
        self.layouts = LayoutMemory()
        self.functional: set[int] = set()
        self.same_samples: bool | None = None
        self.calibrated = False
        self.second_pass = SecondPass(self) if options.second_pass else None
        self._forwards = 0
        self._latest: weakref.ref[Forward] | None = None
        self._handles: list[Any] = []
        self._presence: Any = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Hang hooks on the model, its layers and its parameters."""
        if self._presence is None:
            hook = Hook(self.shielded(self._before_model), self)
            self._presence = self.model.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
        if self._handles:
            return
        model = self.model
        for plan in self.plans:
            # First of all: the user's own hooks may return something else than what the layer did.
            self._hang(plan.module.register_forward_hook, _PlanHook(self, plan), with_kwargs=True, prepend=True)
        if self.second_pass is not None:
            for plan in self.second_pass.plans.values():
                self._hang(plan.module.register_forward_hook, _AboveHook(self, plan), with_kwargs=True)
        self._hang(model.register_forward_hook, self._after_model, with_kwargs=True)
        for leaf in self.leaves:
            if leaf.wanted:
                arrival = Hook(self.shielded(_LeafHook(self, leaf)), self)
                self._handles.append(register_first(leaf.parameter, arrival))
                added = Hook(_AddedHook(self, leaf.index), None)
                self._handles.append(leaf.parameter.register_post_accumulate_grad_hook(added))

    def detach(self) -> None:
        """Take the hooks off, but for one on the model that shows that it is watched."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for leaf in self.leaves:
            # torch keeps the empty dictionaries; without hooks there were none.
            for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
                if not getattr(leaf.parameter, name, None):
                    setattr(leaf.parameter, name, None)
        self.forward = self.backward = self.tagging = None
        self.kept.clear()

    def leave(self) -> None:
        """Take all hooks off."""
        self.detach()
        if self._presence is not None:
            self._presence.remove()
            self._presence = None

    def _hang(self, register: Callable[..., Any], function: Callable[..., Any], **options: Any) -> None:
        self._handles.append(register(Hook(self.shielded(function), self), **options))

    def shielded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its time counted and its failures kept from the user's run."""

        def run(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args)
            except _StopRecomputationError:
                # A checkpoint stops its recomputation with this; it is the user's, not ours.
                raise
            except Exception as error:  # a failure of ours must never end the user's backward
                self.failures.append(f"{type(error).__name__}: {str(error).strip()[:300]}")
                return None
            finally:
                self.seconds += time.perf_counter() - started

        return run

    # -- forward ------------------------------------------------------------------------------------------------------

    def _before_model(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._handles or torch._C._current_graph_task_id() != -1:
            return
        self.backward = None
        self.forward = None
        if not torch.is_grad_enabled():
            return
        self.on_forward()
        samples = batch_size(args, kwargs, self.options.batch_dim)
        if samples and self._handles:
            self._forwards += 1
            self.forward = Forward(samples, root=True, number=self._forwards)
            # Weakly: what belongs to a graph goes when the graph goes.
            self._latest = weakref.ref(self.forward)

    def after_layer(self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of a layer that owns parameters."""
        if self.tagging is not None:
            return self._keep_likewise(plan, args, kwargs, output)
        if not torch.is_grad_enabled():
            self._expect(plan)
            return None
        tensors = [t for t in outputs_of(output) if t.requires_grad]
        leaves = [leaf for leaf in plan.leaves.values() if leaf.wanted]
        if not tensors or not leaves:
            return None
        in_backward = torch._C._current_graph_task_id() != -1
        forward = self._current_forward(args, kwargs, in_backward)
        if forward is None:
            return None
        forward.seen.extend(weakref.ref(tensor) for tensor in tensors)
        dim = self.options.batch_dim
        if (
            not in_backward
            and tensors[0].dim() > dim
            and tensors[0].shape[dim] == forward.samples
            and tensors[0].grad_fn is not None
        ):
            forward.frontier = (tensors[0].grad_fn, tensors[0].output_nr)
        if forward.samples == 1:
            # All that arrives at a parameter is the only sample's.
            return None
        if not self._describes(plan, tensors):
            return None
        if in_backward and self._is_repeated(forward, plan):
            return self._keep_likewise(plan, args, kwargs, output)
        if not in_backward:
            for leaf in leaves:
                forward.uses[leaf.index] = forward.uses.get(leaf.index, 0) + 1
            inputs = [tensor.grad_fn for tensor in tensors_in((args, kwargs))]
            forward.made.append((tensors[0].grad_fn, inputs, [leaf.index for leaf in leaves]))
        if plan.rule is not None:
            self._hook_call(plan, forward, as_positional(plan.module, args, kwargs), tensors[0])
            return None
        return self._hook_recomputed(plan, forward, args, kwargs, output, tensors)

    def _keep_likewise(self, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A checkpoint is recomputed for an inner backward: it must save as many tensors as in the forward, ours included."""
        tensors = [t for t in outputs_of(output) if t.requires_grad]
        if tensors and any(leaf.wanted for leaf in plan.leaves.values()) and self._describes(plan, tensors):
            Kept((args, kwargs) if plan.rule is None else as_positional(plan.module, args, kwargs))

    def _expect(self, plan: Plan) -> None:
        """Without a graph inside a forward that has one: a reentrant checkpoint, whose uses come during backward."""
        forward = self.forward
        if forward is None or forward.samples == 1 or torch._C._current_graph_task_id() != -1:
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
            return self.backward.first if self.backward is not None else None
        self.backward = None
        if self.forward is None or (not self.forward.root and self.forward.step is not None):
            self.on_forward()
            samples = batch_size(args, kwargs, self.options.batch_dim)
            self._forwards += 1
            self.forward = Forward(samples, root=False, number=self._forwards) if samples else None
        return self.forward

    def _hook_call(self, plan: Plan, forward: Forward, args: tuple[Any, ...], output: Tensor) -> None:
        forward.calls[plan.name] = number = forward.calls.get(plan.name, 0) + 1
        call = Call(self, plan, forward, Kept(args), (number, output.dim(), self.model.training))
        device = output.device.type
        if torch.is_autocast_enabled(device):
            forward.autocast = torch.get_autocast_dtype(device)
            if not type(plan.module).__module__.startswith("torch.nn."):
                call.autocast = forward.autocast
        without = call.without_samples(output)
        recomputed = torch._C._current_graph_task_id() != -1
        if not recomputed and (without or (without is None and (self.guarding or call.unsure(output)))):
            made = Made(output.grad_fn, output.output_nr, output.shape)
            forward.unbatched.append((call, made, bool(without)))
        if call.unsure(output):
            forward.wants_tags = True
        output.register_hook(Hook(self.shielded(call.on_grad), self))

    def _hook_recomputed(
        self, plan: Plan, forward: Forward, args: Any, kwargs: Any, output: Any, tensors: list[Tensor]
    ) -> Any:
        kept = Kept((args, kwargs))
        call = RecomputedCall(self, plan, forward, kept, len(outputs_of(output)), tensors[0].device.type)
        if len(tensors) > 1:
            # One output may come from another (an LSTM cell's h from its c); hooks on aliases see each one's own share.
            output = pytree.tree_map(_alias, output)
        if not plan.checked:
            forward.wants_tags = True
            if torch._C._current_graph_task_id() == -1:
                forward.recomputed.append(call)
        for which, tensor in enumerate(outputs_of(output)):
            if tensor.requires_grad:
                tensor.register_hook(Hook(self.shielded(_Numbered(call.on_grad, which)), self))
        return output if len(tensors) > 1 else None

    def _after_model(self, module: Module, args: Any, kwargs: Any, output: Any) -> None:
        forward, self.forward = self.forward, None
        if forward is None or not forward.root or torch._C._current_graph_task_id() != -1:
            return
        dim = self.options.batch_dim
        outputs = [tensor for tensor in tensors_in(output) if tensor.requires_grad and tensor.grad_fn is not None]
        forward.seen.extend(weakref.ref(tensor) for tensor in outputs)
        for tensor in outputs:
            where = next((d for d in (dim, 0) if d < tensor.dim() and tensor.shape[d] == forward.samples), None)
            if where is not None:
                hook = OutputHook(self, forward, forward.outputs, tensor.output_nr, where)
                forward.outputs += 1
                register_first(tensor, Hook(self.shielded(hook.on_grad), self))
        if not forward.outputs and forward.frontier is not None:
            node, number = forward.frontier
            hook = OutputHook(self, forward, 0, number, dim)
            forward.outputs = 1
            node.register_prehook(Hook(self.shielded(hook.on_node), self))
        if forward.samples > 1:
            hook_operators(self, forward, outputs)
            if self.second_pass is not None:
                self.second_pass.choose(forward)
        if forward.uncovered and compiler_was_used():
            inside = inside_compiled(outputs)
            for leaf in self.leaves:
                if leaf.index in forward.uncovered and id(leaf.parameter) in inside:
                    forward.uncovered[leaf.index] = COMPILED
        forward.let_go()

    # -- backward -----------------------------------------------------------------------------------------------------

    def enter(self, forward: Forward) -> bool:
        """Note that a backward has reached this forward; False if its micro-step is over already."""
        if self.backward is None:
            self.backward = Backward(torch._C._current_graph_task_id())
            torch.autograd.Variable._execution_engine.queue_callback(self.shielded(self._after_backward))
        self.backward.reach(forward)
        # Hooks run with gradients enabled only where the backward itself is to be differentiated.
        self.backward.creates |= torch.is_grad_enabled()
        if forward.done:
            return False
        if forward.step is None:
            forward.step = self._new_step(forward)
        return not forward.differentiated

    def more_backwards(self) -> bool:
        """Whether the graph is kept for another backward, or several forwards of the same samples wait for each other."""
        keep: bool = torch._C._autograd._get_current_graph_task_keep_graph()
        return keep or self.same_samples is True

    def _new_step(self, forward: Forward) -> MicroStep:
        options, chosen = self.options, None
        if options.subsample is not None and options.subsample < forward.samples:
            order = torch.randperm(forward.samples, generator=self.generator)
            chosen = order[: options.subsample].sort().values
        for leaf in self.leaves:
            leaf.directions(self.generator)
        spot = self._draw_spot(forward.samples, chosen) if self.guarding else None
        step = MicroStep(forward.samples, moments=options.moments, chosen=chosen, budget=options.budget, spot=spot)
        step.second = forward.second
        for index, reason in forward.uncovered.items():
            step.withhold(self.leaves[index], reason, spoiled=index in forward.interacting)
        return step

    def _draw_spot(self, samples: int, chosen: Tensor | None) -> int:
        """The sample whose gradients are built in full, one of those whose squares are computed."""
        among = samples if chosen is None else chosen.numel()
        drawn = int(torch.randint(among, (), generator=self.generator))
        return drawn if chosen is None else int(chosen[drawn])

    def shared_tags(self, forward: Forward) -> Tensor | None:
        """Tags already drawn for the same samples in another forward of this backward."""
        if self.same_samples is not True or self.backward is None:
            return None
        for other in self.backward.forwards:
            if other.tags is not None and other.samples == forward.samples:
                forward.distinct = other.distinct
                return other.tags
        return None

    def waiting_samples(self) -> int | None:
        """Samples of the last forward that no backward has reached, or None."""
        forward = self._latest() if self._latest is not None else None
        return forward.samples if forward is not None and forward.step is None else None

    def wants_tags(self, forward: Forward) -> bool:
        """Whether this backward needs an inner one."""
        if forward.samples == 1:
            return False
        return self.guarding or forward.wants_tags or bool(self.estimated)

    def tagged_leaves(self, forward: Forward) -> list[Leaf]:
        """The parameters whose signed sum is wanted: all in a guard window, else those that have nothing better."""
        wanted = self.leaves if self.guarding or forward.distinct else [self.leaves[i] for i in sorted(self.estimated)]
        return [leaf for leaf in wanted if leaf.wanted]

    def arrive(self, leaf: Leaf, grad: Tensor) -> None:
        """Hook on a parameter: autograd is about to add this to ``.grad``."""
        if self.tagging is not None:
            return
        leaf.hooked = len(leaf.parameter._backward_hooks or ()) > 1
        if self.backward is None:
            self.backward = Backward(torch._C._current_graph_task_id())
            torch.autograd.Variable._execution_engine.queue_callback(self.shielded(self._after_backward))
        self.backward.arrive(
            leaf, grad, leaf.directions(self.generator), keep=self.options.moments or self.more_backwards()
        )

    def _after_backward(self) -> None:
        backward, self.backward = self.backward, None
        if backward is None:
            return
        backward.drop_unused()
        if backward.creates and not backward.added:
            for forward in backward.forwards:
                forward.differentiated = True
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        steps: list[MicroStep] = []
        if keep:
            self.kept.extend(forward for forward in backward.forwards if forward not in self.kept)
            backward.hold()
        else:
            steps = finish_forwards(backward.forwards, backward.arrivals, self.leaves, self.same_samples)
        self._learn(steps)
        self.deliver(backward, steps)

    def finish_kept(self) -> None:
        """End micro-steps whose graph was kept and never freed: parameters are about to change."""
        kept, self.kept = [forward for forward in self.kept if not forward.done], []
        for forward in kept:
            steps = finish_forwards([forward], {}, self.leaves, self.same_samples)
            self._learn(steps)
            self.deliver(Backward(-1), steps)

    def _learn(self, steps: list[MicroStep]) -> None:
        """Which parameters need the inner backward in every micro-step from now on."""
        for step in steps:
            if self.second_pass is not None and step.samples > 1:
                self.second_pass.learn(step)
            for index, record in step.measured.items():
                if record.arrival is None or step.samples == 1:
                    continue
                if record.norms is None and not record.spoiled:
                    self.estimated.add(index)
                elif record.norms is not None:
                    self.estimated.discard(index)


def _alias(value: Any) -> Any:
    return value.view_as(value) if isinstance(value, Tensor) and value.requires_grad else value


class _PlanHook:
    __slots__ = ("plan", "recorder")

    def __init__(self, recorder: Recorder, plan: Plan) -> None:
        self.recorder, self.plan = recorder, plan

    def __call__(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return self.recorder.after_layer(self.plan, args, kwargs, output)


class _AboveHook:
    __slots__ = ("plan", "recorder")

    def __init__(self, recorder: Recorder, plan: Plan) -> None:
        self.recorder, self.plan = recorder, plan

    def __call__(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        recorder, forward = self.recorder, self.recorder.forward
        if recorder.second_pass is None or not torch.is_grad_enabled():
            return None
        if torch._C._current_graph_task_id() != -1 or recorder.tagging is not None:
            again = recorder.tagging or (recorder.backward.first if recorder.backward is not None else None)
            if again is not None:
                recorder.second_pass.keep_likewise(self.plan, again, args, kwargs)
            return None
        if forward is None or forward.samples == 1:
            return None
        return recorder.second_pass.after_module(self.plan, forward, args, kwargs, output)


class _LeafHook:
    __slots__ = ("leaf", "recorder")

    def __init__(self, recorder: Recorder, leaf: Leaf) -> None:
        self.recorder, self.leaf = recorder, leaf

    def __call__(self, grad: Tensor) -> None:
        self.recorder.arrive(self.leaf, grad)


class _AddedHook:
    """Holds the recorder weakly: the collector does not look into hooks of this kind, so that a cycle would stay for ever."""

    __slots__ = ("index", "recorder")

    def __init__(self, recorder: Recorder, index: int) -> None:
        self.recorder, self.index = weakref.ref(recorder), index

    def __call__(self, parameter: Tensor) -> None:
        recorder = self.recorder()
        if recorder is not None and recorder.backward is not None:
            recorder.backward.added.add(self.index)


class _Numbered:
    __slots__ = ("function", "number")

    def __init__(self, function: Callable[[int, Tensor], None], number: int) -> None:
        self.function, self.number = function, number

    def __call__(self, grad: Tensor) -> None:
        self.function(self.number, grad)
