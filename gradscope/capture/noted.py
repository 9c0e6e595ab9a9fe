"""Calls of layers in ordinary windows: between two layers no more is done than cannot wait."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradscope.capture.forward import Forward
from gradscope.capture.hook import Shielded, hang
from gradscope.capture.kept import KeptPlainly, kept_plainly
from gradscope.capture.plan import Plan
from gradscope.capture.prompt_call import PromptCall
from gradscope.capture.row_call import RowCall
from gradscope.rules.convolution import CONVOLUTION
from gradscope.rules.linear import LINEAR

if TYPE_CHECKING:
    from gradscope.capture.recorder import Recorder


def may_wait(recorder: Recorder) -> bool:
    """Whether calls in the forward that begins may be noted: an ordinary window, in which nothing else looks at modules."""
    return not recorder.guarding and recorder.second_pass is None and recorder.gathered is None


def note(
    recorder: Recorder, forward: Forward, plan: Plan, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> bool:
    """Hang a hook on a layer's output and leave everything else until the forward has ended, if that can wait.

    Python that runs between large products finds its own code and objects out of cache; all calls together find them there.
    """
    if plan.rule is None or kwargs or len(args) != 1 or type(output) is not Tensor or not output.requires_grad:
        return False
    x, rule = args[0], plan.rule
    rows = rule is LINEAR and output.dim() == 2
    if type(x) is not Tensor or not (torch.is_grad_enabled() and _plain(recorder, output)):
        return False
    if recorder.options.fused and not rows and rule in (LINEAR, CONVOLUTION):
        return False
    own = plan.wanted()
    if own:
        call = (RowCall if rows else PromptCall)(recorder, plan, forward, KeptPlainly(x), own)
        forward.rows += rows
        if rule.saved is not None:
            call.saved = rule.saved(output)
        forward.hung.append(hang(output, Shielded(call.on_grad, recorder)))
        made = (output.grad_fn, output.output_nr, output.shape)
        forward.noted.append((call, x, x.grad_fn, x._version, weakref.ref(output), *made))
    return True


def _plain(recorder: Recorder, output: Tensor) -> bool:
    """Whether it is an ordinary forward: no checkpoint's, no inner backward's, no autocast."""
    return (
        recorder.tagging is None
        and torch._C._current_graph_task_id() == -1
        and kept_plainly(output)
        and not (torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(output.device.type))
    )
