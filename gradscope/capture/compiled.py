"""What ``torch.compile`` does to hooks, and what is said of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import CodeType
from typing import Any

import torch
from torch import Tensor

#: Why a parameter whose layer ran inside a compiled graph has no figures.
COMPILED = (
    "it was used inside a compiled graph, where hooks do not run: compile without fullgraph=True, or after gradscope.watch, or "
    "watch the model uncompiled"
)

#: Why there is no window where autograd's own graph is compiled.
COMPILED_BACKWARD = (
    "backwards are compiled (compiled autograd), and hooks are not told when one ends: nothing can be measured; switch "
    "torch._dynamo.config.compiled_autograd off, the forward may stay compiled"
)


def in_one_graph() -> bool:
    """Whether the compiler, which is tracing the caller right now, may not break the graph (``fullgraph=True``).

    There a hook must be left out, since a break would end the user's run. Runs while tracing, and its result becomes a constant.
    """
    convert = sys.modules.get("torch._dynamo.symbolic_convert")
    try:
        tracer: Any = convert.InstructionTranslator.current_tx()  # type: ignore[union-attr]
        return bool(tracer.one_graph or getattr(tracer, "error_on_graph_break", False))
    except AttributeError:
        # Another version of torch keeps it elsewhere; breaking the graph is what most users allow.
        return False


# The mark of torch.compiler.assume_constant_result, which would import the whole compiler here and now.
in_one_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forget_graphs() -> None:
    """Have everything compiled again, since what was compiled before hooks were hung does not call them."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def compiler_was_used() -> bool:
    """Whether this process has compiled anything, so that hooks may have been left out."""
    utils = sys.modules.get("torch._dynamo.utils")
    # A graph that must be whole (fullgraph=True) is counted among the graphs only.
    return utils is not None and bool(utils.counters["frames"] or utils.counters["stats"])


def backward_is_compiled() -> bool:
    """Whether the backward that is running was compiled as a whole."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return bool(getattr(module, "in_compiled_autograd_region", False))


def backward_was_compiled() -> bool:
    """Whether this process has compiled a backward as a whole."""
    utils = sys.modules.get("torch._dynamo.utils")
    return utils is not None and bool(utils.counters["compiled_autograd"])


def leave_uncompiled(code: CodeType, *, callees: bool) -> None:
    """Have the compiler run this code as it is, where it would begin with it; and, if so asked, all that it calls.

    Without it a hook that a compiled function brings about (in its backward, say) would be compiled itself. This is what
    torch._dynamo.skip does, without importing the whole compiler here and now.
    """
    frames: Any = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        action = frames._FrameAction
        strategy = frames._FrameExecStrategy(action.SKIP, action.SKIP if callees else action.DEFAULT)
        frames.set_code_exec_strategy(code, strategy)
    elif hasattr(frames, "skip_code"):
        frames.skip_code(code)


def inside_compiled(outputs: Iterable[Tensor]) -> set[int]:
    """Ids of the parameters that compiled graphs under these outputs read."""
    found: set[int] = set()
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn for tensor in outputs]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        sources = [source for source, _ in node.next_functions if source is not None]
        if "CompiledFunction" in node.name():
            found |= {id(source.variable) for source in sources if hasattr(source, "variable")}
        stack.extend(sources)
    return found
