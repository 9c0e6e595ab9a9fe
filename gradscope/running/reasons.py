"""Why a model has no report, in words that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator

from gradscope.running.attaching import Attaching
from gradscope.running.watched import Watched


def reasons(attaching: Attaching) -> Iterator[str]:
    """What was not measured although one might expect it, and what went wrong."""
    for label, reason in attaching.refused.items():
        yield f"{label} was not watched: {reason}"
    for watched in attaching.watched:
        if not watched.measured:
            yield f"{watched.label} was watched, but {_why_empty(watched)}"
    if not attaching.watched and not attaching.refused:
        yield from _why_none(attaching)
    if attaching.left_alone:
        yield "models that the script itself watches with gradscope were left to it."
    for failure in attaching.failures:
        yield f"gradscope failed, and the script went on: {failure}"


def _why_empty(watched: Watched) -> str:
    if not watched.steps:
        return f"{' and '.join(watched.optimizer_names) or 'its optimizer'} never stepped: no window was closed."
    return (
        f"no backward() brought a gradient to its parameters before any of the {watched.steps} steps: gradients that "
        "torch.autograd.grad or the script itself makes are not seen."
    )


def _why_none(attaching: Attaching) -> Iterator[str]:
    if attaching.left_alone:
        return
    if attaching.unowned:
        yield (
            f"nothing to report: {' and '.join(attaching.unowned)} stepped tensors that belong to no torch.nn.Module."
        )
    elif attaching.optimizers_made:
        yield (
            "nothing to report: an optimizer was made, but no module that holds what it steps was called with gradients enabled, "
            "and it never stepped."
        )
    else:
        yield (
            "nothing to report: this process made no torch.optim.Optimizer. Updates written by hand, and training in child "
            "processes, are not seen; use gradscope.watch(model) and scope.step() there."
        )
