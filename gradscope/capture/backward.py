"""One run of autograd's engine, as the hooks see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from gradscope.capture.forward import Forward
from gradscope.capture.hook import Hook
from gradscope.capture.tagging import settle_signed
from gradscope.contributions import Probe
from gradscope.moments.arrival import Arrival, arrivals_of, projections, size_of
from gradscope.moments.leaf import Leaf
from gradscope.moments.microstep import MicroStep, coarsest, joined

#: Lends memory for a tensor of a shape, like another.
Lender = Callable[[torch.Size, Tensor], Tensor]

TWO_FORWARDS = (
    "several forwards share this backward, and whether they saw the same samples is not known: say "
    "scope.annotate(same_samples=True) (siamese branches) or same_samples=False (real and generated batches) before it"
)


DIFFERENTIATED = (
    "the loss holds a gradient (create_graph=True: a gradient penalty), and what a sample adds through it passes no hook: "
    "windows without the penalty (lazy regularisation) are measured"
)

CLEARED = (
    "gradients were cleared between two backwards of one graph (retain_graph), and what the first one added cannot be told from "
    "what the second one did: call the model again in between"
)


class Backward:
    """One backward: the forwards it reached, and what it added to the parameters.

    Args:
        task: autograd's number of it.
    """

    __slots__ = (
        "added",
        "arrivals",
        "asks",
        "creates",
        "forwards",
        "fresh",
        "lost",
        "restarted",
        "task",
        "touched",
        "unseen",
        "usual",
    )

    def __init__(self, task: int) -> None:
        self.task = task
        #: Whether it builds a graph of its own (``create_graph``).
        self.creates = False
        #: Whether it keeps the graph and adds to no parameter: what it finds belongs to no window.
        self.asks = False
        self.forwards: list[Forward] = []
        #: The last one that it reached, if the backward is an ordinary one for it.
        self.usual: Forward | None = None
        self.arrivals: dict[int, Arrival] = {}
        #: Parameters whose ``.grad`` will hold what arrives, and nothing else: it is read when the backward is over.
        self.fresh: set[int] = set()
        #: Those whose ``.grad`` was gone by then, or had been added to before anything was seen of the backward.
        self.lost: list[Leaf] = []
        #: The latter.
        self.unseen: set[int] = set()
        #: Parameters to which something was added; ``autograd.grad`` passes the hooks but adds nothing.
        self.added: set[int] = set()
        #: Parameters whose ``.grad`` was None before: for them a window begins.
        self.restarted: set[int] = set()
        #: Parameters whose ``.grad`` was changed by someone else since the window's last backward.
        self.touched: set[int] = set()

    @property
    def first(self) -> Forward | None:
        """The first forward that was reached."""
        return self.forwards[0] if self.forwards else None

    def reach(self, forward: Forward) -> None:
        """Note a forward."""
        if forward not in self.forwards:
            self.forwards.append(forward)

    def arrive(self, leaf: Leaf, grad: Tensor, probe: Probe, *, keep: bool) -> None:
        """Note what reached a parameter.

        Args:
            leaf: the parameter.
            grad: what is about to be added.
            probe: its directions.
            keep: whether a copy is needed.
        """
        earlier = self.arrivals.get(leaf.index)
        if earlier is not None:
            earlier.add(grad, probe)
            return
        before = leaf.grad
        self.arrivals[leaf.index] = Arrival.of(grad, probe, keep=keep)
        if before is None:
            if not leaf.pending:
                self.restarted.add(leaf.index)
            leaf.baseline = None
        elif leaf.version is None:
            leaf.baseline = before.detach().clone() if bool((before != 0).any()) else None
        elif before._version != leaf.version:
            # What lies in a buffer beside others (a wrapper's bucket) has their version, too.
            beside = before._is_view()
            if bool((before != 0).any()):
                self.touched |= set() if beside else {leaf.index}
            elif not beside or bool(leaf.added is not None and size_of(leaf.added) != 0):
                # zero_grad(set_to_none=False)
                self.restarted.add(leaf.index)
                leaf.baseline = None

    def read(self, leaves: Sequence[Leaf], generator: torch.Generator, memory: Lender | None = None) -> None:
        """Read what was left for the end; forget what was asked for and not accumulated.

        Args:
            leaves: all parameters.
            generator: where directions come from that are not drawn yet.
            memory: lends memory for copies, where these will be wanted.
        """
        added, fresh, unseen = self.added, self.fresh, self.unseen
        self.arrivals = arrivals = {index: arrival for index, arrival in self.arrivals.items() if index in added}
        wanted = (fresh | unseen) & added - arrivals.keys()
        self.restarted |= fresh & wanted
        known, grads, probes, versions = list[int](), list[Tensor](), list[Probe](), list[int | None]()
        for leaf in leaves:
            index = leaf.index
            if index not in wanted:
                continue
            grad, version = leaf.parameter.grad, None
            if grad is None or (index in unseen and self.forwards):
                self.lost.append(leaf)
                grad = None
            if index in fresh:
                leaf.baseline, leaf.hooked = None, False
                version = None if grad is None else grad._version
            if grad is not None:
                known.append(index)
                grads.append(grad)
                probes.append(leaf.probe or leaf.directions(generator))
                versions.append(version)
        if known:
            for index, version, arrival in zip(known, versions, arrivals_of(grads, probes, memory), strict=True):
                arrivals[index] = arrival
                arrival.stored = version
        self.restarted &= added
        self.touched &= self.added

    def hold(self) -> None:
        """The graph is kept: what arrived belongs to a micro-step that goes on."""
        for forward in self.forwards[:1]:
            merge_arrivals(forward.arrivals, self.arrivals)


def after_backward(function: Callable[[], None], levels: int = 0) -> None:
    """Call this when the backward that is running ends.

    Args:
        function: what to call.
        levels: how many rounds of callbacks go first: what reduces gradients over ranks queues its own, and those queue others.
    """
    if levels:
        outer = partial(after_backward, function, levels - 1)
        torch.autograd.Variable._execution_engine.queue_callback(outer)
    else:
        # A Hook is not compiled where the backward itself is part of a compiled function.
        hook = function if isinstance(function, Hook) else Hook(function, None)
        torch.autograd.Variable._execution_engine.queue_callback(hook)


def merge_arrivals(into: dict[int, Arrival], later: Mapping[int, Arrival]) -> None:
    """Add what a later backward of the same micro-step brought."""
    for index, arrival in later.items():
        if index in into:
            into[index].merge(arrival)
        else:
            into[index] = arrival


def forget_cleared(kept: list[Forward], backward: Backward, leaves: list[Leaf]) -> None:
    """Drop micro-steps whose graph was kept and whose gradients the user has cleared since: they are in no gradient."""
    for forward in [forward for forward in kept if not forward.done and forward.arrivals]:
        reached = set(forward.arrivals)
        cleared = all(index in backward.restarted or leaves[index].grad is None for index in reached)
        if not cleared or not reached & backward.restarted:
            continue
        forward.arrivals.clear()
        if forward in backward.forwards:
            forward.void = CLEARED
            continue
        kept.remove(forward)
        forward.done = True
        forward.waiting.clear()
        forward.signed.clear()


def finish_forwards(
    forwards: list[Forward], arrivals: Mapping[int, Arrival], leaves: list[Leaf], same_samples: bool | None
) -> list[MicroStep]:
    """The micro-step that a backward has ended: all that waited is described, squared and compared.

    Args:
        forwards: the model's calls that this backward reached.
        arrivals: what this backward added to the parameters.
        leaves: all parameters.
        same_samples: what the user said of several forwards in one backward; None if nothing.
    """
    live = [forward for forward in forwards if not forward.done and forward.step is not None]
    # Backward reaches the last forward first; samples stand in the order in which the model read them.
    live.sort(key=lambda forward: forward.number)
    for forward in forwards:
        forward.done = True
    if not live:
        return []
    total = arrivals
    if any(forward.arrivals for forward in live):
        total = {}
        for forward in live:
            merge_arrivals(total, forward.arrivals)
        merge_arrivals(total, arrivals)
    if same_samples is True and len(live) > 1:
        _share(live)
    for forward in live:
        for call in forward.waiting:
            call.finish()
        forward.waiting.clear()
    steps = [forward.step for forward in live if forward.step is not None]
    alone = len(live) == 1 and not (live[0].differentiated or live[0].mixing or live[0].mixed)
    if len(live) == 1 or same_samples is True:
        settle_signed(live[0], leaves)
        step = steps[0]
        step.finish(leaves)
        if not alone:
            step.settle()
    else:
        for forward, part in zip(live, steps, strict=True):
            part.finish(leaves)
            part.settle()
            forward.signed.clear()
        step = joined(steps, total)
        if same_samples is None:
            for record in step.measured.values():
                record.reason, record.norms, record.probes, record.spoiled = TWO_FORWARDS, None, None, True
    _attach(step, live, total, leaves)
    void = DIFFERENTIATED if any(forward.differentiated for forward in live) else live[0].void
    if void:
        for record in step.measured.values():
            record.reason, record.norms, record.probes, record.spoiled = void, None, None, True
    return [step]


def _share(live: list[Forward]) -> None:
    """The same samples went through the model several times: their uses belong together."""
    first = live[0]
    for forward in live[1:]:
        forward.step = first.step
        for index, uses in forward.uses.items():
            first.uses[index] = first.uses.get(index, 0) + uses
        forward.uses = first.uses
        for index, signed in forward.signed.items():
            before = first.signed.get(index)
            first.signed[index] = signed if before is None else before + signed
        forward.signed.clear()


def _attach(step: MicroStep, live: list[Forward], arrivals: Mapping[int, Arrival], leaves: list[Leaf]) -> None:
    guarding, measured, doubted = step.spot is not None, step.measured, list[Leaf]()
    for index, arrival in arrivals.items():
        leaf = leaves[index]
        record = measured.get(index) or step.of(leaf)
        record.arrival, dtype = arrival, arrival.dtype
        if guarding or leaf.mismatched:
            doubted.append(leaf)
        if record.sketch is None and record.norms is None and not record.reason:
            record.reason = "no layer that gradscope knows was seen using it"
        if dtype is not record.dtype and dtype in (torch.float16, torch.bfloat16, torch.float32):
            record.dtype = coarsest(record.dtype, dtype)
        if dtype is torch.float32 and arrival.on_cuda and _rounds_to_tf32(leaf.parameter.dim() > 2):
            # Ten bits of mantissa, as float16 has.
            record.dtype = coarsest(record.dtype, torch.float16)
    if doubted:
        _look_at_parameters(step, doubted)
    mixed = [name for forward in live for name in (*forward.mixing, *forward.mixed)]
    if mixed:
        _name_mixing(step, live, mixed)
    if any(forward.tag_error for forward in live):
        step.notices.append(f"the inner backward was refused: {next(f.tag_error for f in live if f.tag_error)}")


def _look_at_parameters(step: MicroStep, leaves: Iterable[Leaf]) -> None:
    """Note what may be needed to name an L2 term."""
    # A sharded parameter's numbers are not here any more.
    pairs = [(leaf, leaf.probe) for leaf in leaves if leaf.info.numel > 1 and not leaf.sharded and leaf.probe]
    found = projections([leaf.parameter.detach() for leaf, _ in pairs], [probe for _, probe in pairs])
    for (leaf, _), along in zip(pairs, found, strict=True):
        step.of(leaf).parameter_probe = along


def _rounds_to_tf32(convolution: bool) -> bool:
    """Whether the device may multiply float32 with fewer digits: convolutions do by default."""
    try:
        return torch.backends.cuda.matmul.allow_tf32 or (convolution and torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        # torch refuses to say where its older and newer switches were both used.
        return True


def _name_mixing(step: MicroStep, live: list[Forward], mixed: list[str]) -> None:
    """Samples interact: say where, and that nothing below it can be estimated."""
    culprits = [name for forward in live for name in forward.mixing]
    if culprits:
        where = f"{culprits[0]} mixes the samples of a batch (training mode)"
    else:
        where = f"samples interact between {mixed[0]!r} and the output"
    for record in step.measured.values():
        record.unplaced = not culprits
        if record.assumed and record.norms is not None:
            # Whose rows these are was only assumed, and somewhere samples do interact.
            record.norms = record.probes = record.second_moment = None
        if record.norms is None and not record.spoiled:
            record.spoiled = True
            record.reason = f"{where}; {record.reason}" if record.reason else where
        elif record.spoiled and record.reason == "samples interact after this layer":
            remedy = "use eval mode or GroupNorm, or pass ignore=[...]"
            record.reason = f"{where}, so no sample has a gradient of its own here: {remedy}"
