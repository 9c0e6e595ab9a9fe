"""What computing figures may use."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from gradscope.contributions.choice import Choice

#: Elements of an intermediate result that exist at once: on a CPU few enough for its cache, many enough for full speed; elsewhere
#: a call costs more than the memory that it goes through.
CHUNK = {"cpu": 1 << 20}
DEVICE_CHUNK = 1 << 24

#: Bytes of scratch memory that are kept for the next layer, for each purpose.
KEPT = 8 << 20


class Workspace:
    """Algorithms and scratch memory, shared by all contributions of one model.

    Scratch memory on the CPU is used again, since fresh memory can cost more than what is computed in it (the system hands out
    each page only when it is touched). Elsewhere torch's own allocator does so, and knows of streams.

    Args:
        choice: which algorithm is used where there are several; by default the cheapest by the cost model.
        budget: bytes that an intermediate result may take, or None; a single sample's gradient is always allowed.
    """

    def __init__(self, choice: Choice | None = None, budget: int | None = None) -> None:
        self.choice = choice or Choice()
        self.budget = budget
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        #: Views of them, by shape: making one costs as much as a small operator.
        self._views: dict[tuple[str, torch.dtype, torch.device], dict[tuple[int, ...], Tensor]] = {}
        #: Memory of figures: where what was lent lies, and what has come back.
        self._lent: set[int] = set()
        self._returned: dict[tuple[int, torch.dtype], list[Tensor]] = {}

    def room(self, each: int, like: Tensor, least: int = 1) -> int:
        """How many intermediate results of ``each`` elements may exist at once; at least ``least``, if the budget allows."""
        several = max(least, CHUNK.get(like.device.type, DEVICE_CHUNK) // max(1, each))
        if self.budget is not None:
            several = min(several, self.budget // max(1, each * like.element_size()))
        return max(1, several)

    def allows(self, elements: int, like: Tensor) -> bool:
        """Whether an intermediate result of so many elements is within the budget."""
        return self.budget is None or elements * like.element_size() <= self.budget

    def buffer(self, slot: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Scratch memory with anything in it; the next request for the same slot may get the same memory.

        Args:
            slot: what it is for; results that exist together need slots of their own.
            shape: of the tensor.
            like: a tensor of the wanted dtype and device.
        """
        key = (slot, like.dtype, like.device)
        views = self._views.get(key)
        known = None if views is None else views.get(tuple(shape))
        if known is not None:
            return known
        size = prod(shape)
        if size * like.element_size() > KEPT or not like.is_cpu:
            return like.new_empty(shape)
        kept = self._buffers.get(key)
        if views is None or kept is None or kept.numel() < size:
            kept = self._buffers[key] = like.new_empty(size)
            views = self._views[key] = {}
        view = views[tuple(shape)] = kept[:size].view(shape)
        return view

    def chosen(self, slot: str, rows: Tensor, index: Tensor) -> Tensor:
        """Some of the rows, in scratch memory: until the next request for the same slot.

        Args:
            slot: what they are for.
            rows: ``[n, ...]``.
            index: which, int64.
        """
        memory = self.buffer(slot, (index.numel(), *rows.shape[1:]), rows)
        return torch.index_select(rows, 0, index.to(rows.device), out=memory)

    def lend(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Memory with anything in it, for a figure of the parameter's size that outlives the backward.

        Args:
            shape: of the tensor.
            like: a tensor of the wanted dtype and device.
        """
        if not like.is_cpu:
            return like.new_empty(shape)
        returned = self._returned.get((shape.numel(), like.dtype))
        memory = returned.pop() if returned else like.new_empty(shape)
        self._lent.add(memory.data_ptr())
        return memory if memory.shape == shape else memory.view(shape)

    def give_back(self, tensor: Tensor) -> None:
        """Nobody reads this any more: the next window's figure may have its memory, if it was lent here."""
        address = tensor.data_ptr()
        if address in self._lent and tensor.is_contiguous():
            self._lent.discard(address)
            self._returned.setdefault((tensor.numel(), tensor.dtype), []).append(tensor)

    def moment(self, shape: torch.Size, like: Tensor, *, turned: bool) -> Tensor:
        """Memory for a second moment: lent, or scratch where it will be turned round."""
        return self.buffer("moment", shape, like) if turned else self.lend(shape, like)
