"""One call of the watched model, from its inputs to the end of its backward."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gradscope.contributions.precision import squared_norm
from gradscope.moments.arrival import Arrival
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import MicroStep, coarsest

if TYPE_CHECKING:
    from gradscope.capture.call import Call
    from gradscope.capture.prompt_call import PromptCall
    from gradscope.capture.recomputed_call import RecomputedCall


class Made(NamedTuple):
    """What is known of a tensor without holding it: a held activation would be the memory that a checkpoint saves."""

    grad_fn: Any
    output_nr: int
    shape: torch.Size


#: A call of a layer of which only its hook hangs so far: it, what it read, the node that made that and its version at that time,
#: what it returned, and what is known of that without holding it.
Noted: TypeAlias = "tuple[PromptCall, Tensor, Any, int, weakref.ref[Tensor], Any, int, torch.Size]"


class Forward:
    """One call of the model.

    Holds nothing of the graph: calls are kept alive by the hooks on their outputs, so that they go when the graph goes.

    Attributes:
        samples: n.
        root: whether the watched model itself was called; otherwise only modules inside it were.
        autocast: the half precision that some layer ran in, or None.
        arrivals: what earlier backwards of a kept graph added to the parameters.
        uses: per parameter index, how many calls read it.
        calls: per layer, how many of its calls were recorded.
        step: figures, from the first hook of the first backward on.
        waiting: calls whose gradients wait for the micro-step's last backward (``retain_graph``).
        number: how many forwards there were before.
        starts_at: the output from which the inner backward that is running started.
        tags: what each sample's gradient at the output was multiplied with in the inner backward, float64 ``[n]``.
        signed: per parameter index, ``Σ rᵢhᵢ`` while outputs still add to it.
        pending: per layer, how many of its calls in reentrant checkpoints are still to be recomputed.
        outputs: number of outputs with a hook.
        tag_error: why there are no tags although they were wanted.
        through: per output, what reaches it through outputs that come after it.
        unbatched: calls whose output has no batch dimension, their output, and whether that is certain; until the forward ends.
        recomputed: calls to be recomputed, until the forward ends.
        above: names of modules that a second pass may recompute; their calls, until the forward ends.
        second: parameters that a second pass describes.
        packs: whether hooks on saved tensors (activation checkpoints) were in force in some layer.
        keeps: layers whose calls kept their inputs; a checkpoint has to keep them again, whatever was learnt since.
        notes: whether it may be that all that is to be done when a layer has run waits until the forward has ended.
        noted: calls for which it does.
        prompt: those that have been made up for, until the forward ends.
        made: per call, its output's node, its inputs' nodes and its parameters, until the forward ends.
        interacting: those parameters among them after which samples interact.
        uncovered: per parameter index, why one of its uses cannot be described.
        seen: weak references to outputs, whose retained gradients the inner backward must not touch.
        hung: hooks on layers' and the model's outputs, where some of the user's own may hang too.
        frontier: the autograd node and output number of the last call with a batch dimension, until the forward ends.
        differentiated: its gradients were taken with ``create_graph``, and may be part of the loss.
        distinct: whether the tags tell every sample from every other (random signs do not).
        wants_tags: whether layouts in a graph of this shape are not known yet, or may change.
        mixing: modules that are known to mix samples; mixed: layers whose rows fit no sample.
        done: its micro-step has been finished.
    """

    # On the class: what most calls leave as it is.
    starts_at: int | None = None
    autocast: torch.dtype | None = None
    step: MicroStep | None = None
    tags: Tensor | None = None
    outputs = 0
    tag_error = ""
    packs = False
    notes = False
    #: How many of its calls were noted whose figures are a few numbers a sample.
    rows = 0
    #: What the last layer with a rule read, its version, and the layer's call.
    latest: tuple[weakref.ref[Tensor], int, weakref.ref[Call]] | None = None
    frontier: tuple[Any, int] | None = None
    wants_tags = False
    distinct = False
    differentiated = False
    done = False
    #: Two dimensions of an output have as many entries as there are samples; ``batch_dim`` says which is theirs.
    ambiguous = False
    #: What the graph looks like: a layout that was measured holds for graphs of one shape.
    graph: object = None
    #: Why nothing can be said of it, whatever is found; empty where something can.
    void = ""
    #: The layout of some call that a gradient reached is not known yet: graphs of this shape are tagged again.
    unsettled = False

    def __init__(self, samples: int, root: bool, number: int = 0) -> None:
        self.samples = samples
        self.number = number
        self.root = root
        self.arrivals: dict[int, Arrival] = {}
        self.uses: dict[int, int] = {}
        self.calls: dict[str, int] = {}
        self.waiting: list[Call | RecomputedCall] = []
        self.signed: dict[int, Tensor] = {}
        self.pending: dict[str, int] = {}
        self.through: dict[int, Tensor] = {}
        self.unbatched: list[tuple[Call, Made, bool]] = []
        self.recomputed: list[RecomputedCall] = []
        self.above: dict[str, list[RecomputedCall]] = {}
        self.second: set[int] = set()
        self.interacting: set[int] = set()
        self.keeps: set[str] = set()
        self.made: list[tuple[Any, Sequence[Any], Iterable[Leaf]]] = []
        self.noted: list[Noted] = []
        self.prompt: list[PromptCall] = []
        self.seen: list[weakref.ref[Tensor]] = []
        self.hung: list[weakref.ref[OrderedDict[int, Any]]] = []
        self.uncovered: dict[int, str] = {}
        self.mixing: list[str] = []
        self.mixed: list[str] = []

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        """The lowest precision that a gradient of this dtype may have gone through on its way from the output."""
        return dtype if self.autocast is None else coarsest(dtype, self.autocast)

    def signed_sum(self, leaf: Leaf) -> Tensor | None:
        """``‖Σ rᵢhᵢ‖²`` as far as the inner backward has come; None where there was none."""
        held = self.signed.get(leaf.index)
        if held is not None:
            return squared_norm(held)
        record = None if self.step is None else self.step.measured.get(leaf.index)
        return None if record is None else record.signed_sum

    def let_go(self) -> None:
        """The forward has ended: hold nothing of its graph."""
        self.frontier = self.latest = None
        for calls in self.above.values():
            calls.clear()
        for held in (self.unbatched, self.recomputed, self.made, self.noted, self.prompt):
            held.clear()
