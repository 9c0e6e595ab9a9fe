"""Back through a plain recurrent layer."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.rules.recurrent.run import Returned, Run


def back_through_tanh(run: Run) -> Returned:
    """``h = tanh(·)``, whose slope ``1 − h²`` the output tells."""
    return _back(run, 1 - run.after.square())


def back_through_relu(run: Run) -> Returned:
    """``h = max(·, 0)``, whose slope the output tells."""
    return _back(run, (run.after > 0).to(run.after.dtype))


def _back(run: Run, slopes: Tensor) -> Returned:
    """The slopes become the gradients of what was received, in place."""
    run.silence(slopes)
    weight, scratch = run.weights["weight_hh"], torch.empty_like(run.grad[0])
    rows, grads = slopes.unbind(0), run.grad.unbind(0)
    later: Tensor | None = None
    for t in run.backwards:
        rows[t].mul_(grads[t] if later is None else torch.addmm(grads[t], later, weight, out=scratch))
        later = rows[t]
    return Returned(slopes, slopes)
