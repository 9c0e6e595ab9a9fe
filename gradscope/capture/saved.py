"""Reading what an autograd node saved, also inside an activation checkpoint, which lets every tensor be read only once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.utils import checkpoint


class UnreadableError(Exception):
    """The node lies in a checkpoint that cannot be read without taking its tensors from the user's backward."""


@contextmanager
def readable(node: Any, *, packs: bool) -> Iterator[Callable[[], None]]:
    """While this lasts, the node's saved tensors may be read; afterwards autograd finds them as they were.

    Yields a function to be called after each reading but the last.

    Args:
        node: an autograd node, in one of its own hooks.
        packs: whether hooks on saved tensors were seen during the forward, for releases of torch whose nodes do not show them.

    Raises:
        UnreadableError: they cannot be put back.
    """
    held = list(_checkpointed(node, packs))
    group = getattr(torch._C, "_get_graph_exec_group", lambda: None)()
    task = torch._C._current_graph_task_id() if group is None else group

    def put_back() -> None:
        for holder, frame, tensor in held:
            handle = checkpoint._Handle()
            holder.handles[task] = handle
            frame.recomputed[task][handle] = tensor

    put_back()
    try:
        yield put_back
    finally:
        put_back()


def _checkpointed(node: Any, packs: bool) -> Iterator[tuple[Any, Any, torch.Tensor]]:
    """Tensors that the node saved in a checkpoint: where they are kept, by which frame, and the tensors."""
    kind: type = type(node)
    for name in _saved_names(kind):
        raw = getattr(node, name)
        public = "saved_tensors" if name == "_raw_saved_tensors" else name.replace("_raw", "", 1)
        if not isinstance(raw, (tuple, list)):
            frame = _frame(raw, packs)
            if frame is not None:
                yield raw.data, frame, getattr(node, public)
            continue
        frames = [_frame(one, packs) for one in raw]
        if any(frame is not None for frame in frames):
            for one, frame, tensor in zip(raw, frames, getattr(node, public), strict=True):
                if frame is not None and tensor is not None:
                    yield one.data, frame, tensor


def runs_once(nodes: Iterable[Any]) -> bool:
    """Whether some checkpoint recomputes in a context of its own: selective checkpoints give out once what they have stored."""
    frames: set[int] = set()
    for node in nodes:
        kind: type = type(node)
        for name in _saved_names(kind):
            raw = getattr(node, name)
            for one in raw if isinstance(raw, (tuple, list)) else (raw,):
                try:
                    frame = _frame(one, packs=False)
                except UnreadableError:
                    continue
                if frame is None or id(frame) in frames:
                    continue
                frames.add(id(frame))
                again = frame.recompute_fn
                cells = dict(zip(again.__code__.co_freevars, again.__closure__ or (), strict=True))
                if "recompute_context" in cells and not isinstance(
                    cells["recompute_context"].cell_contents, nullcontext
                ):
                    return True
    return False


@cache
def _saved_names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def _frame(raw: Any, packs: bool) -> Any:
    """The checkpoint's frame that a saved tensor belongs to; None outside of checkpoints."""
    if raw is None:
        return None
    if not hasattr(raw, "unpack_hook"):
        if not packs:
            return None
        raise UnreadableError("this release of torch does not show whether it lies in a checkpoint")
    hook = raw.unpack_hook
    if hook is None or getattr(hook, "__module__", "") != checkpoint.__name__:
        return None
    while hook is not None:
        cells = dict(zip(hook.__code__.co_freevars, hook.__closure__ or (), strict=True))
        if "frame" in cells and hasattr(cells["frame"].cell_contents, "recomputed"):
            return cells["frame"].cell_contents
        hook = cells["unpack_hook"].cell_contents if "unpack_hook" in cells else None
    raise UnreadableError("it lies in an activation checkpoint of a kind that is not known")
