"""Windows with made-up sums, as a small model's would be."""

import math

import torch

from gradscope.coverage import Coverage
from gradscope.window import ParameterInfo, ParameterSums, Window

PARAMETERS = (
    ParameterInfo("wte.weight", "wte", 640, (10, 64), ("lm_head.weight",)),
    ParameterInfo("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv", 4096, (64, 64)),
    ParameterInfo("blocks.0.mlp.weight", "blocks.0.mlp", 4096, (64, 64)),
    ParameterInfo("blocks.1.mlp.weight", "blocks.1.mlp", 4096, (64, 64)),
    ParameterInfo("scale", "", 1, ()),
)


def window(index, samples=8, *, newest=True, parameters=PARAMETERS, **others):
    """A window whose noise scale is near 40, different in each window."""
    generator = torch.Generator().manual_seed(index)
    sums, coverage = {}, {}
    for info in parameters:
        spread = torch.rand(samples, generator=generator, dtype=torch.float64) + 0.5
        if info.numel > 1:
            spread[3] = 9.0
        total = float(spread.sum())
        sums[info.name] = ParameterSums(
            grad_sq_norm=total * (1.2 + 0.05 * float(torch.rand(1, generator=generator))),
            contribution_sq_sum=total,
            sample_sq_norms=spread if newest else None,
            preconditioned=(0.25, 1 / 3) if info.name == "wte.weight" else None,
        )
        coverage[info.name] = Coverage("exact", "linear", "", 3e-7 * index)
    coverage["scale"] = Coverage("estimated", "random signs", "no layer owns it", math.nan)
    given = {
        "index": index, "samples": samples, "micro_steps": 2, "weight_sq_sum": 1 / samples, "parameters": sums,
        "coverage": coverage, "weights": torch.full((samples,), 1 / samples, dtype=torch.float64) if newest else None,
        "ids": tuple(f"img_{index}_{i}.png" for i in range(samples)), "notices": ("a notice",) if index == 3 else (),
    }  # fmt: skip
    return Window(**(given | others))


def windows(count, start=1):
    """As a scope keeps them: only the newest holds tensors."""
    return [window(i, newest=i == start + count - 1) for i in range(start, start + count)]
