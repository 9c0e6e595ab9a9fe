"""The processes that average their gradients with this one."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Peers:
    """The user's own process groups: one, or one for each dimension of a device mesh.

    Args:
        groups: outermost first.
        device: where the model's parameters lie.

    Attributes:
        world: how many ranks there are.
        rank: this one's number among them, from 0.
    """

    def __init__(self, groups: Sequence[Any], device: torch.device) -> None:
        self.groups = list(groups)
        self.world = prod(group.size() for group in self.groups)
        self.rank = 0
        for group in self.groups:
            self.rank = self.rank * group.size() + group.rank()
        kinds = {found.type for group in self.groups[:1] for found in getattr(group, "_device_types", ())}
        #: Where collectives take their tensors: the host wherever the backend can.
        self.device = torch.device("cpu") if "cpu" in kinds else device

    def collectives(self) -> int:
        """How many collectives the innermost group has seen: the same number on all ranks at the same point of a run."""
        try:
            return int(self.groups[-1]._get_sequence_number_for_group())
        except (RuntimeError, AttributeError):
            # Not every backend counts.
            return 0

    def members(self) -> list[int]:
        """Global numbers of all ranks of this rank's groups."""
        return sorted({rank for group in self.groups for rank in dist.get_process_group_ranks(group)})

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over ranks, on the host. Numbers that were on the host and are sent from there are overwritten."""
        sent = numbers.to(self.device)
        for group in self.groups:
            dist.all_reduce(sent, group=group)
        return sent.cpu()

    def gather(self, part: Tensor) -> list[Tensor]:
        """Every rank's part, by rank, on the host; all of one shape."""
        sent = part.to(self.device)
        for group in reversed(self.groups):
            parts = [torch.empty_like(sent) for _ in range(group.size())]
            dist.all_gather(parts, sent.contiguous(), group=group)
            sent = torch.stack(parts)
        return list(sent.reshape(self.world, *part.shape).cpu())
