"""What averages the gradients of ranks: found where the model runs, so that wrapping it may come before or after ``watch``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel

from gradscope.errors import InvalidArgumentError, UnwatchableModelError
from gradscope.moments.leaf import Leaf
from gradscope.ranks.peers import Peers
from gradscope.ranks.shard import split

JOINED = "inside join() the ranks that have run out of inputs could not answer, so that nothing was merged"
PARTS_ONLY = (
    "each rank holds only a part of it (fully_shard), and what a micro-step adds to the whole is seen nowhere but inside its "
    "layer: use capture=True"
)
SPLIT = "parameters are split over several device meshes (tensor parallelism), which gradscope cannot merge"


def check_whole(model: Module, leaves: Sequence[Leaf], *, capture: bool) -> None:
    """Refuse parameters of which no rank will ever hold the whole.

    Raises:
        UnwatchableModelError: layers are split over ranks.
        InvalidArgumentError: they are gathered, but only inside their layers, which are to be left alone.
    """
    old = next((path for path, one in model.named_modules() if type(one).__name__ == "FullyShardedDataParallel"), None)
    if old is not None:
        raise UnwatchableModelError(
            f"{old or 'the model'} is wrapped in FullyShardedDataParallel, which keeps parameters as parts of one flat "
            "tensor, where hooks cannot tell them apart. Use torch.distributed.fsdp.fully_shard, its successor."
        )
    sharded = [leaf for leaf in leaves if leaf.sharded]
    if not sharded:
        return
    name = sharded[0].info.name
    if not any(hasattr(module, "_get_fsdp_state") for module in model.modules()):
        raise UnwatchableModelError(
            f"{name!r} is split over ranks while its layer runs (tensor parallelism), so that no rank ever sees what a sample "
            "adds to it. Watch a part of the model that is not split, or train without parallelize_module."
        )
    if not capture:
        raise InvalidArgumentError(f"watch: capture=False cannot work for {name!r}: {PARTS_ONLY}.")


@dataclass(frozen=True, slots=True, eq=False)
class Averaging:
    """How one forward's gradients will be averaged.

    Attributes:
        peers: the ranks.
        one_copy: each part of a gradient is on one rank only.
        now: whether the backward of this forward averages; otherwise it adds to what a later one averages.
        ends: whether it did, given which parameters (by identity) it reached: a backward that stops halfway does not.
        overwrites: gradients are averaged where they are added, so that a rank's own is never to be seen whole.
        why: why ranks cannot be merged here; empty where they can.
    """

    peers: Peers
    one_copy: bool
    now: bool
    ends: Callable[[set[int]], bool]
    overwrites: bool
    why: str = ""


def find_averaging(model: Module, leaves: Sequence[Leaf], known: Peers | None) -> Averaging | None:
    """What is around the model whose forward begins; None where nothing is.

    Args:
        model: the watched model.
        leaves: its parameters.
        known: the ranks, where they were found before.
    """
    sharded = [leaf for leaf in leaves if leaf.sharded]
    if sharded:
        return _fully_sharded(model, sharded, known)
    wrapper: Any = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if wrapper is None:
        return None
    return _data_parallel(wrapper, leaves, known)


def _data_parallel(wrapper: Any, leaves: Sequence[Leaf], known: Peers | None) -> Averaging:
    device = leaves[0].parameter.device
    joining = bool(getattr(wrapper._join_config, "enable", False))
    lenient = wrapper.find_unused_parameters or wrapper.static_graph
    names = set(getattr(wrapper, "parameters_to_ignore", ()))
    left_out = {id(one) for name, one in wrapper.module.named_parameters() if name in names} if names else set()
    expected = {id(leaf.parameter) for leaf in leaves if leaf.wanted} - left_out
    return Averaging(
        peers=known or Peers([wrapper.process_group], device),
        one_copy=False,
        now=bool(wrapper.require_backward_grad_sync) and not joining,
        ends=lambda reached: lenient or expected <= reached,
        overwrites=bool(wrapper.gradient_as_bucket_view),
        why=JOINED if joining else "",
    )


def _fully_sharded(model: Module, sharded: Sequence[Leaf], known: Peers | None) -> Averaging:
    first: Any = sharded[0].parameter
    parameters: list[Any] = [leaf.parameter for leaf in sharded]
    alike = known is not None or all(
        one.device_mesh == first.device_mesh and split(one) is not None for one in parameters
    )
    device = torch.device(first.device_mesh.device_type)
    return Averaging(
        peers=known or Peers(first.device_mesh.get_all_groups(), device),
        one_copy=True,
        now=_reduces(model),
        ends=lambda reached: bool(reached),
        overwrites=True,
        why="" if alike else SPLIT,
    )


def _reduces(model: Module) -> bool:
    """Whether ``set_requires_gradient_sync`` has left some module of the model to reduce its gradients."""
    modules: list[Any] = list(model.modules())
    for module in modules:
        if not hasattr(module, "_get_fsdp_state"):
            continue
        state = module._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:
            groups = [state._fsdp_param_group] if state._fsdp_param_group is not None else []
        if any(group.reduce_grads for group in groups):
            return True
    return False
