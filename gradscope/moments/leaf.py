"""What is known of one parameter while backward runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from gradscope.contributions import Probe
from gradscope.moments.arrival import Arrival
from gradscope.window import ParameterInfo


class Leaf:
    """One parameter of the watched model.

    Attributes:
        index: its place in the recorder's list.
        info: name, layer, size.
        parameter: the tensor.
        full: random directions, drawn anew in guard windows.
        probe: those of them that this window looks along: all in guard windows, else one, a different one each time.
        version: version of ``.grad`` when the last backward of the window ended, to notice changes in between.
        ignored: why the user's options leave it out; empty where they do not.
        mismatched: the last window's contributions did not add up.
        hooked: a hook of the user's own comes after ours.
        baseline: what ``.grad`` held when the window began, where that was not zero.
        live: the tensor that the model's graph holds: the parameter itself, or what ``fully_shard`` gathered of it.
        added: ``‖fresh‖²`` of the newest backward that reached it, or the arrival that it is of.
        pending: something arrived that ``fully_shard`` has not reduced into ``.grad`` yet.
        watched: hooks of ours hang on it.
        in_turn: one of several watched optimizers steps it, so that it may be frozen while another has its turn.
        weight: the weight that this is the bias of, in layers where both are projected onto the same directions.
        prompt: its gradient is looked at as it comes: it is sharded, or once could not be read when the backward was over.
        sharded: this process holds a part of the parameter only (a ``DTensor``).
        followed: a hook of ours sees its gradient before it is added.
    """

    __slots__ = (
        "added", "baseline", "followed", "full", "hooked", "ignored", "in_turn", "index", "info", "live", "mismatched",
        "parameter", "pending", "probe", "prompt", "sharded", "version", "watched", "weight",
    )  # fmt: skip

    def __init__(self, index: int, info: ParameterInfo, parameter: Parameter) -> None:
        self.index = index
        self.info = info
        self.parameter = parameter
        self.live: Tensor = parameter
        self.pending = False
        self.watched = False
        self.in_turn = False
        self.added: Tensor | Arrival | None = None
        self.probe: Probe | None = None
        self.full: Probe | None = None
        self.version: int | None = None
        self.baseline: Tensor | None = None
        self.ignored = ""
        self.hooked = False
        self.mismatched = False
        self.weight: Leaf | None = None
        self.sharded = hasattr(parameter, "to_local")
        self.prompt = self.sharded
        self.followed = False

    @property
    def wanted(self) -> bool:
        """Whether this parameter is to be measured: it asks for a gradient, and the user did not leave it out."""
        return self.parameter.requires_grad and not self.ignored

    @property
    def grad(self) -> Tensor | None:
        """``.grad``, or this process's part of it: reading more of a ``DTensor`` would wait for other ranks."""
        grad = self.parameter.grad
        if grad is None or not self.sharded:
            return grad
        with torch.no_grad():
            part: Tensor = grad.to_local()  # type: ignore[attr-defined]
        return part

    def directions(self, generator: torch.Generator) -> Probe:
        """The probe, drawn when it is first needed."""
        if self.probe is None:
            weight, own = self.weight, self.parameter.detach()
            alike = weight is not None and (weight.parameter.dtype, weight.parameter.device) == (own.dtype, own.device)
            above = weight.directions(generator) if weight is not None and alike else None
            if above is not None and not above.parts:
                # The weight looks along one direction only, in this window.
                above = None
            self.probe = self.full = Probe.draw(own, generator, weight=above)
        return self.probe

    def narrow(self, which: int) -> None:
        """Look along one of the directions only: an ordinary window, in which each operator counts."""
        if self.full is not None and not self.mismatched:
            self.probe = self.full.parts[which % len(self.full.parts)]
