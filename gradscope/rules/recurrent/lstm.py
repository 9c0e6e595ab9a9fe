"""Back through an LSTM."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscope.rules.recurrent.run import Returned, Run


def back_through_lstm(run: Run) -> Returned:
    """``i, f, o = σ(·)``, ``g = tanh(·)``, ``c = f c₋ + i g``, ``h = o tanh c``, or ``W_hr`` times that.

    Going back: ``dc = f₊ dc₊ + o (1 − tanh² c) dh``; the gates' gradients are ``dc`` or ``dh`` times factors that are
    computed for all steps at once, so that a step is one product and four elementwise operators.
    """
    steps, n = run.x.shape[:2]
    gates = run.received().view(steps, n, 4, -1)
    gates[:, :, :2].sigmoid_()
    gates[:, :, 2].tanh_()
    gates[:, :, 3].sigmoid_()
    kept = gates[:, :, 1].contiguous()
    if run.absent is not None:
        # A sequence that is over keeps its cell state.
        kept.masked_fill_(run.absent, 1.0)
    before, after = _cells(run, gates, kept)
    squashed = after.tanh()
    unprojected = gates[:, :, 3] * squashed if "weight_hr" in run.weights else None
    through = torch.addcmul(gates[:, :, 3], squashed.square(), gates[:, :, 3], value=-1)
    _to_factors(gates, before, squashed)
    run.silence(gates.flatten(2), through, *(() if unprojected is None else (unprojected,)))
    grads = _loop(run, gates, kept, through)
    flat = gates.flatten(2)
    return Returned(flat, flat, None if unprojected is None or grads is None else (unprojected, grads))


def _cells(run: Run, gates: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The cell states that each step read and left, ``[T, n, h]``."""
    steps = run.x.shape[0]
    states = kept.new_empty(steps + 1, *kept.shape[1:])
    first, change = (steps, -1) if run.reverse else (0, 1)
    states[first] = 0.0 if run.cell is None else run.cell
    added = gates[:, :, 0] * gates[:, :, 2]
    run.silence(added)
    rows, cells = states.unbind(0), list(zip(added.unbind(0), kept.unbind(0), strict=True))
    for k in range(steps):
        at = first + change * k
        new, keep = cells[at - 1 if run.reverse else at]
        torch.addcmul(new, keep, rows[at], out=rows[at + change])
    return (states[1:], states[:-1]) if run.reverse else (states[:-1], states[1:])


def _to_factors(gates: Tensor, before: Tensor, squashed: Tensor) -> None:
    """The gates' values become what ``dc`` (for the output gate ``dh``) is multiplied with."""
    i, f, g, o = gates.unbind(2)
    to_g = torch.addcmul(i, g.square(), i, value=-1)
    # σ' = σ − σ², and i g − i² g = (i − i²) g.
    torch.addcmul(i, i, i, value=-1, out=i)
    i.mul_(g)
    g.copy_(to_g)
    torch.addcmul(f, f, f, value=-1, out=f)
    f.mul_(before)
    torch.addcmul(o, o, o, value=-1, out=o)
    o.mul_(squashed)


def _loop(run: Run, gates: Tensor, kept: Tensor, through: Tensor) -> Tensor | None:
    """The factors become the gates' gradients, in place.

    Returns:
        Gradient of the projected hidden states, ``[T, n, p]``; None without a projection.
    """
    weight, projection = run.weights["weight_hh"], run.weights.get("weight_hr")
    arrived = torch.empty_like(run.grad) if projection is not None else None
    carried = torch.zeros_like(kept[0]) if run.cell_grad is None else run.cell_grad.clone()
    wide = carried.unsqueeze(1)
    scratch = torch.empty_like(run.grad[0])
    flat, cells, outs = gates.flatten(2).unbind(0), gates[:, :, :3].unbind(0), gates[:, :, 3].unbind(0)
    keeps, passes, grads = kept.unbind(0), through.unbind(0), run.grad.unbind(0)
    later: Tensor | None = None
    for t in run.backwards:
        hidden = grads[t] if later is None else torch.addmm(grads[t], later, weight, out=scratch)
        if arrived is not None and projection is not None:
            arrived[t] = hidden
            hidden = hidden @ projection
        carried.addcmul_(hidden, passes[t])
        cells[t].mul_(wide)
        outs[t].mul_(hidden)
        carried.mul_(keeps[t])
        later = flat[t]
    return arrived
