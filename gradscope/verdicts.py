"""What is thought of every parameter's figures in every micro-step of a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradscope.judgement import Judged, device_numbers, judge, read
from gradscope.moments.microstep import MicroStep, coarsest


def verdicts(
    steps: Sequence[MicroStep], grad_sq: Mapping[int, Tensor]
) -> tuple[dict[int, list[Judged | None]], dict[int, float]]:
    """Verdicts by parameter index, one per micro-step and None where nothing reached it; and ``‖ḡ‖²`` on the host.

    Args:
        steps: the window's micro-steps.
        grad_sq: ``‖ḡ‖²`` by parameter index, on its device.
    """
    present = [[i for i, m in step.measured.items() if m.arrival is not None] for step in steps]
    tables = [
        device_numbers([step.measured[i] for i in indices], step) for step, indices in zip(steps, present, strict=True)
    ]
    if not tables:
        return {}, {}
    # One transfer for the whole window.
    whole = [torch.stack(list(grad_sq.values())).to(tables[0].device, torch.float64)] if grad_sq else []
    found = torch.cat([*(table.reshape(-1) for table in tables), *whole]).tolist()
    on_host = dict(zip(grad_sq, found[len(found) - len(grad_sq) :], strict=True))
    judged: dict[int, list[Judged | None]] = {i: [None] * len(steps) for indices in present for i in indices}
    start = 0
    for k, (step, indices, table) in enumerate(zip(steps, present, tables, strict=True)):
        width = table.shape[1]
        starts = range(start, start + table.numel(), width)
        numbers = {i: read(found[at : at + width], step.samples) for i, at in zip(indices, starts, strict=True)}
        start += table.numel()
        model_sq = sum(one.fresh_sq for one in numbers.values())
        lowest = coarsest(*{step.measured[i].dtype for i in indices})
        for i, one in numbers.items():
            judged[i][k] = judge(step.measured[i], one, step, model_sq, lowest)
    return judged, on_host
