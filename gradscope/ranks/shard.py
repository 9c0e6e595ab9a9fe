"""A parameter of which every rank holds a part."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradscope.contributions import Probe
from gradscope.moments.leaf import Leaf


def split(parameter: Any) -> tuple[int, int] | None:
    """The dimension of a device mesh along which ``fully_shard`` splits a ``DTensor``, and its own that is split.

    None where it is split over more than that (tensor parallelism), so that no rank ever holds it whole.
    """
    shards = [(k, found.dim) for k, found in enumerate(parameter.placements) if found.is_shard()]
    return shards[0] if len(shards) == 1 and shards[0][0] == len(parameter.placements) - 1 else None


def replicas(leaf: Leaf) -> int:
    """How many ranks hold the same part, for each part."""
    if not leaf.sharded:
        return 1
    parameter: Any = leaf.parameter
    found = split(parameter)
    return 1 if found is None else int(parameter.device_mesh.size()) // int(parameter.device_mesh.size(found[0]))


def part_of(probe: Probe, leaf: Leaf, part: Tensor) -> Probe:
    """The directions' entries that belong to this rank's part, so that probes of all parts add up to the whole's."""
    parameter: Any = leaf.parameter
    found = split(parameter) if leaf.sharded else None
    if found is None:
        return probe
    across, dim = found
    # The parts are those of torch.chunk: all of one size but for the last.
    size = -(-int(parameter.shape[dim]) // int(parameter.device_mesh.size(across)))
    start = size * int(parameter.device_mesh.get_local_rank(across))
    if dim == 0:
        return Probe(probe.left.narrow(1, start, part.shape[0]), probe.right)
    right = probe.right.reshape(probe.right.shape[0], *parameter.shape[1:])
    right = right.narrow(dim, start, part.shape[dim]).reshape(probe.right.shape[0], -1)
    return Probe(probe.left, right)
