"""Recomputing modules above a parameter's owner, where the user asked for figures of single samples at that cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch.nn import Module
from torch.utils import _pytree as pytree

from gradscope.capture.forward import Forward
from gradscope.capture.kept import Kept
from gradscope.capture.plan import Plan
from gradscope.capture.recomputed_call import RecomputedCall, sample_dim
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import MicroStep
from gradscope.rules.recompute import outputs_of

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder


class SecondPass:
    """Which modules are recomputed for the parameters that nothing nearer describes: none that need not be.

    Args:
        recorder: where figures go.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        #: Parameters that nothing nearer describes: known when a forward ends, or from the figures that a backward left out.
        self.missing: set[int] = set()
        names = {leaf.index: (leaf.info.name, *leaf.info.aliases) for leaf in recorder.leaves}
        #: Per parameter, the names of the modules that contain every use of it, nearest first.
        self.above = {index: _common_owners(found) for index, found in names.items()}
        wanted = {name for leaf in recorder.leaves if leaf.wanted for name in self.above[leaf.index]}
        modules = dict(recorder.model.named_modules())
        self.plans = {
            name: Plan(name, module, _inside(module, recorder.leaves))
            for name, module in modules.items()
            if name in wanted and any(child is not module and child._parameters for child in module.modules())
        }

    def after_module(self, plan: Plan, forward: Forward, args: Any, kwargs: Any, output: Any) -> Any:
        """Forward hook of a module that may have to be recomputed: keep what that takes, until the forward ends."""
        if self.recorder.calibrated and not any(plan.name in self.above[index] for index in self.missing):
            return None
        tensors = [tensor for tensor in outputs_of(output) if tensor.requires_grad]
        if not tensors:
            return None
        n, batch_dim = forward.samples, self.recorder.options.batch_dim
        if any(sample_dim(plan.module, tensor, n, batch_dim) is None for tensor in tensors):
            return None
        kept, count = Kept((args, kwargs)), len(outputs_of(output))
        call = RecomputedCall(self.recorder, plan, forward, kept, count, tensors[0].device.type, above=True)
        forward.above.setdefault(plan.name, []).append(call)
        aliased = len(tensors) > 1
        if aliased:
            output = pytree.tree_map(call.alias, output)
        call.hang(outputs_of(output))
        return output if aliased else None

    def choose(self, forward: Forward) -> None:
        """The forward has ended: recompute the nearest module above each parameter that is not described, and drop the rest."""
        needed = self.missing | set(forward.uncovered)
        for leaf in self.recorder.leaves:
            if leaf.index not in needed or not leaf.wanted:
                continue
            name = next((name for name in self.above[leaf.index] if name in forward.above), None)
            if name is None:
                continue
            self.missing.add(leaf.index)
            forward.second.add(leaf.index)
            forward.uncovered.pop(leaf.index, None)
            forward.uses[leaf.index] = len(forward.above[name])
            for call in forward.above[name]:
                call.chosen.update({key: one for key, one in call.plan.leaves.items() if one is leaf})
        for calls in forward.above.values():
            for call in calls:
                if call.chosen:
                    forward.wants_tags |= forward.graph not in call.plan.checked
                else:
                    call.drop()
            calls.clear()

    def keep_likewise(self, plan: Plan, forward: Forward, args: Any, kwargs: Any) -> None:
        """A checkpoint that runs its part again must save as many tensors as the first time, ours included."""
        if plan.name in forward.above:
            Kept((args, kwargs))

    def learn(self, step: MicroStep) -> None:
        """Note what this micro-step could not say of single samples."""
        for index, record in step.measured.items():
            if record.arrival is not None and not record.described and not record.spoiled and not record.second_pass:
                self.missing.add(index)


def _common_owners(names: Iterable[str]) -> list[str]:
    """Names of the modules that all of these parameters lie in, innermost first."""
    paths = [name.split(".")[:-1] for name in names]
    shared = paths[0]
    for path in paths[1:]:
        same = 0
        while same < min(len(shared), len(path)) and shared[same] == path[same]:
            same += 1
        shared = shared[:same]
    return [".".join(shared[:k]) for k in range(len(shared), -1, -1)]


def _inside(module: Module, leaves: Iterable[Leaf]) -> dict[str, Leaf]:
    """A module's parameters, by the first name that they have in it."""
    by_id = {id(leaf.parameter): leaf for leaf in leaves}
    return {name: by_id[id(p)] for name, p in module.named_parameters() if id(p) in by_id}
