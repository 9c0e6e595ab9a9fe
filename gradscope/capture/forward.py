"""One call of the watched model, from its inputs to the end of its backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from gradscope.moments.leaf import Arrival
from gradscope.moments.microstep import MicroStep

if TYPE_CHECKING:
    from gradscope.capture.call import Call


class Forward:
    """One call of the model.

    Holds nothing of the graph: calls are kept alive by the hooks on their outputs, so that they go when the graph goes.

    Attributes:
        samples: n.
        root: whether the watched model itself was called; otherwise only modules inside it were.
        arrivals: what earlier backwards of a kept graph added to the parameters.
        uses: per parameter index, how many calls read it.
        calls: number of calls recorded.
        step: figures, from the first hook of the first backward on.
        waiting: calls whose gradients wait for the micro-step's last backward (``retain_graph``).
        tags: what each sample's gradient at the output was multiplied with in the inner backward, float64 ``[n]``.
        signed: per parameter index, ``Σ rᵢhᵢ`` while outputs still add to it.
        outputs: number of outputs with a hook.
        tag_error: why there are no tags although they were wanted.
        through: per output, what reaches it through outputs that come after it.
        frontier: the autograd node and output number of the last call with a batch dimension, until the forward ends.
        distinct: whether the tags tell every sample from every other (random signs do not).
        wants_tags: whether some call's layout is not known yet.
        mixing: modules that are known to mix samples; mixed: layers whose rows fit no sample.
        done: its micro-step has been finished.
    """

    __slots__ = (
        "__weakref__", "arrivals", "calls", "distinct", "done", "frontier", "mixed", "mixing", "outputs", "root", "samples", "signed",
        "step", "tag_error",
        "tags", "through", "uses", "waiting", "wants_tags",
    )  # fmt: skip

    def __init__(self, samples: int, root: bool) -> None:
        self.samples = samples
        self.root = root
        self.arrivals: dict[int, Arrival] = {}
        self.uses: dict[int, int] = {}
        self.calls = 0
        self.step: MicroStep | None = None
        self.waiting: list[Call] = []
        self.tags: Tensor | None = None
        self.signed: dict[int, Tensor] = {}
        self.outputs = 0
        self.tag_error = ""
        self.through: dict[int, Tensor] = {}
        self.frontier: tuple[object, int] | None = None
        self.wants_tags = False
        self.distinct = False
        self.mixing: list[str] = []
        self.mixed: list[str] = []
        self.done = False
