"""Back through a GRU."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.rules.recurrent.run import Returned, Run


def back_through_gru(run: Run) -> Returned:
    """``r, z = σ(·)``, ``m = tanh(read + r · remembered)``, ``h = (1 − z) m + z h₋``.

    Going back: ``dh₋ = z dh + W_hhᵀ d``, where the gates' gradients ``d`` are ``dh`` times factors that are computed for all
    steps at once, so that a step is one product and two elementwise operators.
    """
    steps, n = run.x.shape[:2]
    read, factors = (part.view(steps, n, 3, -1) for part in (run.read(), run.remembered()))
    gates = read[:, :, :2].add_(factors[:, :, :2]).sigmoid_()
    r, z = gates.unbind(2)
    m = torch.addcmul(read[:, :, 2], r, factors[:, :, 2]).tanh_()
    to_m = (1 - z).mul_(1 - m.square())
    factors[:, :, 0] = to_m * factors[:, :, 2] * (r - r.square())
    factors[:, :, 1] = (run.before - m) * (z - z.square())
    torch.mul(to_m, r, out=factors[:, :, 2])
    kept = z.contiguous()
    run.silence(factors.flatten(2), to_m)
    hidden = _loop(run, factors, kept)
    remembered = factors.flatten(2)
    # Only the candidate sees its two parts apart.
    received = remembered.clone()
    torch.mul(to_m, hidden, out=received.view_as(factors)[:, :, 2])
    return Returned(received, remembered)


def _loop(run: Run, factors: Tensor, kept: Tensor) -> Tensor:
    """The factors become the gates' gradients, in place.

    Returns:
        Gradient of the hidden states, ``[T, n, h]``.
    """
    weight, hidden = run.weights["weight_hh"], torch.empty_like(kept)
    flat, wide, grads = factors.flatten(2).unbind(0), factors.unbind(0), run.grad.unbind(0)
    keeps, here = kept.unbind(0), hidden.unbind(0)
    later: int | None = None
    for t in run.backwards:
        if later is None:
            here[t].copy_(grads[t])
        else:
            torch.addmm(grads[t], flat[later], weight, out=here[t])
            here[t].addcmul_(here[later], keeps[later])
        wide[t].mul_(here[t].unsqueeze(1))
        later = t
    return hidden
