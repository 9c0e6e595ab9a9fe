"""Everything that hangs on the model while it is watched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import Module

from gradscope.capture.backward import Backward, after_backward, finish_forwards, forget_cleared
from gradscope.capture.callables import AboveHook, AddedHook, LeafHook
from gradscope.capture.compiled import backward_is_compiled
from gradscope.capture.forward import Forward
from gradscope.capture.forwarding import Forwarding
from gradscope.capture.gathered import Gathered
from gradscope.capture.hook import Shielded
from gradscope.capture.layout_memory import LayoutMemory
from gradscope.capture.options import Options
from gradscope.capture.plan import Plan
from gradscope.capture.second_pass import SecondPass
from gradscope.capture.tagging import register_first
from gradscope.contributions.workspace import Workspace
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import MicroStep

#: Seed of the private generator: two runs over the same data print the same figures.
SEED = 0x6772616473

_PLACE = attrgetter("device", "dtype")


class Recorder:
    """Hooks on a model, and the micro-step that they are filling.

    Args:
        model: the watched model.
        leaves: its parameters.
        plans: its modules that own parameters.
        options: what the user asked for.
        deliver: called after each backward, with the micro-steps that it finished.
        on_forward: called when a forward with a graph begins.
        workspace: algorithms and scratch memory.
    """

    def __init__(
        self, model: Module, leaves: list[Leaf], plans: list[Plan], options: Options,
        deliver: Callable[[Backward, list[MicroStep]], None], on_forward: Callable[[], None] = lambda: None,
        workspace: Workspace | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.leaves = leaves
        self.plans = plans
        self.options = options
        self.deliver = deliver
        self.generator = torch.Generator("cpu").manual_seed(SEED)
        self.workspace = workspace or Workspace(budget=options.budget)
        self.forwarding = Forwarding(self, on_forward)
        self.tagging: Forward | None = None
        self.backward: Backward | None = None
        self.estimated: set[int] = set()
        self.guarding = True
        self.seconds = 0.0
        self.failures: list[str] = []
        self.kept: list[Forward] = []
        self.layouts = LayoutMemory()
        self.functional: set[int] = set()
        #: Shapes of graphs whose layouts were measured.
        self.graphs: set[object] = set()
        #: Shapes of graphs whose last inner backward was refused; guard windows try again.
        self.refused: set[object] = set()
        #: That of the last forward.
        self.graph: object = None
        self.same_samples: bool | None = None
        self.calibrated = False
        #: Other callbacks at the end of a backward, which may queue more, come first.
        self.levels = 0
        #: Whether no other process shares the gradients: wrappers put sums over ranks into ``.grad`` during the backward.
        self.local = True
        #: Whether a second backward may run inside the user's; where it would wait for other ranks it may not.
        self.inner = True
        self.gathered = Gathered(plans, self._hang_on) if any(leaf.sharded for leaf in leaves) else None
        self.second_pass = SecondPass(self) if options.second_pass else None
        self._parameters = [leaf.parameter for leaf in leaves]
        self._places = list(map(_PLACE, self._parameters))
        #: Whether they lie on several devices.
        self.spread = _on_several(self._places)
        self._handles: list[Any] = []
        self._presence: Any = None

    def look_where(self) -> None:
        """What was found out on one device, in one precision, is found out again where parameters were converted since."""
        places = list(map(_PLACE, self._parameters))
        if places != self._places:
            self._places, self.spread, self.layouts = places, _on_several(places), LayoutMemory()
            self.graphs.clear()
            self.refused.clear()
            self.guarding, self.calibrated = True, False
            for plan in self.plans:
                plan.layouts = LayoutMemory()
            for leaf in self.leaves:
                leaf.probe = leaf.full = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Hang hooks on the model, its layers and its parameters."""
        if self._presence is None:
            hook = self.shielded(self.forwarding.before_model)
            self._presence = self.model.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
        if self._handles:
            return
        model = self.model
        for plan in self.plans:
            # First of all: the user's own hooks may return something else than what the layer did.
            after_layer = partial(self.forwarding.after_layer, plan)
            self._hang(plan.module.register_forward_hook, after_layer, with_kwargs=True, prepend=True)
        if self.second_pass is not None:
            for plan in self.second_pass.plans.values():
                self._hang(plan.module.register_forward_hook, AboveHook(self, plan), with_kwargs=True)
        self._hang(model.register_forward_hook, self.forwarding.after_model, with_kwargs=True)
        self.hang_wanted()

    def hang_wanted(self) -> None:
        """Hooks on parameters that ask for a gradient and have none of ours yet: some were unfrozen since."""
        for leaf in self.leaves:
            if not leaf.watched and leaf.wanted and not leaf.sharded:
                self._hang_on(leaf)

    def _hang_on(self, leaf: Leaf) -> None:
        leaf.watched = True
        added = AddedHook(self, leaf.index)
        self._handles.append(leaf.live.register_post_accumulate_grad_hook(added))
        if leaf.followed or leaf.sharded or not self.local:
            self._follow(leaf)

    def share(self) -> None:
        """Other processes share the gradients: what is added here is seen before it is, always."""
        self.local = False
        for leaf in self.leaves:
            if leaf.watched and not leaf.followed:
                self._follow(leaf)

    def _follow(self, leaf: Leaf) -> None:
        """From now on see its gradient before it is added, in the backward that is running, too; not while it is frozen."""
        if not leaf.live.requires_grad:
            return
        leaf.followed = True
        self._handles.append(register_first(leaf.live, self.shielded(LeafHook(self, leaf))))

    def detach(self) -> None:
        """Take the hooks off, but for one on the model that shows that it is watched."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self.gathered is not None:
            self.gathered.forget()
        for leaf in self.leaves:
            # torch keeps the empty dictionaries; without hooks there were none.
            for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
                if not getattr(leaf.live, name, None):
                    setattr(leaf.live, name, None)
            leaf.live, leaf.watched = leaf.parameter, False
        self.forwarding.drop()
        self.backward = self.tagging = None
        self.kept.clear()

    @property
    def attached(self) -> bool:
        """Whether hooks hang: not in windows that ``every`` skips."""
        return bool(self._handles)

    def leave(self) -> None:
        """Take all hooks off."""
        self.detach()
        if self._presence is not None:
            self._presence.remove()
            self._presence = None

    def _hang(self, register: Callable[..., Any], function: Callable[..., Any], **options: Any) -> None:
        self._handles.append(register(self.shielded(function), **options))

    def shielded(self, function: Callable[..., Any]) -> Shielded:
        """The function with its time counted and its failures kept from the user's run."""
        return Shielded(function, self)

    # -- backward -----------------------------------------------------------------------------------------------------

    def enter(self, forward: Forward) -> bool:
        """Note that a backward has reached this forward; False if its micro-step is over already."""
        backward = self.backward or self._begin(forward)
        if backward.asks:
            return False
        if forward.noted:
            # A backward inside the model's own forward.
            self.forwarding.enrol_noted(forward)
        if forward not in backward.forwards:
            backward.forwards.append(forward)
            if forward.samples == 1 and self.options.moments:
                for index in backward.fresh - backward.added:
                    self._read_as_it_comes(backward, self.leaves[index])
        # Hooks run with gradients enabled only where the backward itself is to be differentiated.
        backward.creates |= torch.is_grad_enabled()
        if forward.done:
            return False
        if forward.step is None:
            forward.step = self._new_step(forward)
        return not forward.differentiated

    def enters_as_usual(self, forward: Forward) -> bool:
        """Note that a backward has reached this forward; whether it is an ordinary one, and the only one of its graph."""
        if self.tagging is not None or self.guarding or forward.tags is not None:
            return False
        if self.backward is not None and self.backward.usual is forward:
            return True
        if not self.enter(forward) or self.more_backwards() or torch.is_grad_enabled() or self.backward is None:
            return False
        self.backward.usual = forward
        return True

    def _begin(self, forward: Forward | None) -> Backward:
        """A backward has begun: what lies in ``.grad`` already decides how its parameters are looked at."""
        backward = self.backward = Backward(torch._C._current_graph_task_id())
        if backward_is_compiled():
            # Nobody will say when it is over.
            backward.asks = True
            return backward
        after_backward(self.shielded(self._after_backward), self.levels)
        few = self.options.moments and (forward is None or forward.samples == 1)
        more = self.more_backwards()
        # Where no graph is kept there is no other backward that this one could be mistaken for a part of.
        backward.asks = (more or bool(self.kept)) and not torch.is_grad_enabled() and not self._adds_anything()
        if backward.asks:
            return backward
        every, fresh = few or not self.local or more, backward.fresh
        for leaf in self.leaves:
            own = leaf.live
            if not leaf.watched or not own.requires_grad:
                # Or it was frozen since.
                continue
            if not (every or leaf.prompt or own.grad is not None):
                hooks, before = len(own._post_accumulate_grad_hooks or ()), own._backward_hooks
                if before:
                    hooks += len(before) - leaf.followed
                if hooks <= 1:
                    fresh.add(leaf.index)
                    continue
            self._read_as_it_comes(backward, leaf)
        return backward

    def _adds_anything(self) -> bool:
        """Whether the backward that is running will add to a parameter; ``autograd.grad`` only returns what it finds."""
        for leaf in self.leaves:
            if not leaf.watched or not leaf.live.requires_grad:
                continue
            try:
                if torch._C._will_engine_execute_node(get_gradient_edge(leaf.live).node):
                    return True
            except RuntimeError as error:
                # torch refuses to say it of a parameter whose gradient is returned.
                if "autograd.grad()" not in str(error):
                    return True
        return False

    def _read_as_it_comes(self, backward: Backward, leaf: Leaf) -> None:
        backward.fresh.discard(leaf.index)
        if not leaf.followed:
            self._follow(leaf)

    def added_first(self, index: int) -> None:
        """A backward that no hook of ours has seen so far has added to a parameter: what it held before is not known."""
        backward = self._begin(None)
        backward.fresh.discard(index)
        backward.added.add(index)
        if not self.leaves[index].followed:
            self._follow(self.leaves[index])
        backward.unseen.add(index)

    def more_backwards(self) -> bool:
        """Whether the graph is kept for another backward, or several forwards of the same samples wait for each other."""
        keep: bool = torch._C._autograd._get_current_graph_task_keep_graph()
        return keep or self.same_samples is True

    def _new_step(self, forward: Forward) -> MicroStep:
        options, chosen = self.options, None
        if options.subsample is not None and options.subsample < forward.samples:
            order = torch.randperm(forward.samples, generator=self.generator, device="cpu")
            chosen = order[: options.subsample].sort().values
        for leaf in self.leaves:
            if leaf.probe is None:
                leaf.directions(self.generator)
        spot = self._draw_spot(forward.samples, chosen) if self.guarding else None
        step = MicroStep(
            forward.samples, moments=options.moments, chosen=chosen, budget=options.budget, spot=spot, workspace=self.workspace
        )  # fmt: skip
        step.second, step.spread = forward.second, self.spread
        for index, reason in forward.uncovered.items():
            step.withhold(self.leaves[index], reason, spoiled=index in forward.interacting)
        return step

    def _draw_spot(self, samples: int, chosen: Tensor | None) -> int:
        """The sample whose gradients are built in full, one of those whose squares are computed."""
        among = samples if chosen is None else chosen.numel()
        drawn = int(torch.randint(among, (), generator=self.generator, device="cpu"))
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

    def wants_tags(self, forward: Forward) -> bool:
        """Whether this backward needs an inner one."""
        if forward.samples == 1 or forward.tag_error or not self.inner:
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
        backward = self.backward or self._begin(None)
        if backward.asks or leaf.index in backward.fresh:
            return
        own = leaf.live
        leaf.hooked = max(len(own._backward_hooks or ()), len(own._post_accumulate_grad_hooks or ())) > 1
        prompt = leaf.hooked or leaf.prompt or not self.local
        few = not backward.forwards or any(forward.samples == 1 for forward in backward.forwards)
        keep = self.more_backwards() or (self.options.moments and (prompt or few))
        backward.arrive(leaf, grad, leaf.directions(self.generator), keep=keep)

    def _after_backward(self) -> None:
        backward, self.backward = self.backward, None
        if backward is None:
            return
        backward.read(self.leaves, self.generator, self.workspace.lend if self.options.moments else None)
        for leaf in backward.lost:
            leaf.prompt = True
        if backward.creates and not backward.added:
            for forward in backward.forwards:
                forward.differentiated = True
        forget_cleared(self.kept, backward, self.leaves)
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        steps: list[MicroStep] = []
        if keep:
            self.kept.extend(forward for forward in backward.forwards if forward not in self.kept)
            backward.hold()
        else:
            steps = finish_forwards(backward.forwards, backward.arrivals, self.leaves, self.same_samples)
        self._learn(steps)
        self._note_graphs(backward.forwards)
        self.deliver(backward, steps)

    def finish_kept(self) -> None:
        """End micro-steps whose graph was kept and never freed: parameters are about to change."""
        kept, self.kept = [forward for forward in self.kept if not forward.done], []
        for forward in kept:
            steps = finish_forwards([forward], {}, self.leaves, self.same_samples)
            self._learn(steps)
            self._note_graphs([forward])
            self.deliver(Backward(-1), steps)

    def _note_graphs(self, forwards: list[Forward]) -> None:
        """In which graphs all layouts are known now, or cannot be measured."""
        for forward in forwards:
            if forward.tag_error:
                self.refused.add(forward.graph)
            elif forward.tags is not None:
                self.refused.discard(forward.graph)
            if forward.done and forward.unsettled and forward.graph not in self.refused:
                self.graphs.discard(forward.graph)
            elif forward.done and (forward.distinct or forward.tag_error):
                self.graphs.add(forward.graph)

    def _learn(self, steps: list[MicroStep]) -> None:
        """Which parameters need the inner backward in every micro-step from now on."""
        for step in steps:
            if self.second_pass is not None and step.samples > 1:
                self.second_pass.learn(step)
            for index, record in step.measured.items() if step.samples > 1 else ():
                if record.arrival is None:
                    continue
                if record.sketch is not None or record.norms is not None:
                    if self.estimated:
                        self.estimated.discard(index)
                elif not record.spoiled:
                    self.estimated.add(index)


def _on_several(places: Sequence[tuple[torch.device, torch.dtype]]) -> bool:
    return len({device for device, _ in places}) > 1
