"""The tools; an open set: one file, one line here."""

from __future__ import annotations

from functools import partial

from benchmarks.speed.problem import Problem
from benchmarks.speed.tools import asdl, backpack, cockpit, fastdp, gns_pytorch, opacus, torchjd
from benchmarks.speed.tools.loop import Loop
from benchmarks.speed.tools.plain import Plain, TwoMicroSteps
from benchmarks.speed.tools.random_signs import RandomSigns
from benchmarks.speed.tools.scope import Reported, Watched, WithoutCapture
from benchmarks.speed.tools.tool import Runner, Tool
from benchmarks.speed.tools.vmap import Vmapped, VmappedMoments, VmappedNorms

WHOLE = "norms over the whole model only, not per layer"


def _quarter(problem: Problem) -> Runner:
    return Watched(problem, subsample=max(problem.samples // 4, 1))


def _watched(**settings: object) -> partial[Watched]:
    return partial(Watched, **settings)


TOOLS = {
    "plain": Tool("plain", "plain", Plain, cost=1.0),
    "plain-2": Tool("plain, two micro-steps", "plain", TwoMicroSteps, cost=1.2),
    # norms
    "scope": Tool("gradscope", "norms", _watched(), ours=True, cost=1.3),
    "scope-fused": Tool("gradscope, fused=True", "norms", _watched(fused=True), ours=True, cost=1.2),
    "scope-tuned": Tool("gradscope, tune=True", "norms", _watched(tune=True), ours=True, cost=1.3),
    "scope-report": Tool("gradscope, a report each step", "norms", Reported, ours=True, cost=1.4),
    "fastdp": Tool("fastDP, norm hooks only", "norms", fastdp.NormHooks, needs=("fastDP.autograd_grad_sample",)),
    "backpack-l2": Tool("BackPACK BatchL2Grad", "norms", backpack.BatchL2, needs=("backpack",), cost=1.8),
    "opacus-ghost": Tool("Opacus, ghost norms", "norms", opacus.Ghost, needs=("opacus",)),
    "opacus-hooks": Tool("Opacus hooks, then norms", "norms", opacus.Hooked, needs=("opacus",), cost=3.5),
    "vmap-norms": Tool("vmap(grad), then norms", "norms", VmappedNorms, cost=3.5),
    "asdl": Tool("ASDL batch gradients, then norms", "norms", asdl.BatchGradients, needs=("asdl",), cost=3.5),
    "torchjd": Tool("TorchJD Gramian", "norms", torchjd.Gramian, needs=("torchjd",), cost=4.0, note=WHOLE),
    "loop": Tool("loop over samples", "norms", Loop, cost=5.0),
    # moments
    "scope-moments": Tool("gradscope, moments=True", "moments", _watched(moments=True), ours=True, cost=1.6),
    "scope-moments-fused": Tool(
        "gradscope, moments=True, fused=True", "moments", _watched(moments=True, fused=True), ours=True, cost=1.5
    ),
    "backpack-sgs": Tool("BackPACK SumGradSquared", "moments", backpack.SumOfSquares, needs=("backpack",), cost=5.0),
    "backpack-variance": Tool("BackPACK Variance", "moments", backpack.Variance, needs=("backpack",), cost=7.0),
    "opacus-moments": Tool("Opacus hooks, then moments", "moments", opacus.HookedMoments, needs=("opacus",), cost=4.5),
    "vmap-moments": Tool("vmap(grad), then moments", "moments", VmappedMoments, cost=3.5),
    "cockpit": Tool("Cockpit, economy", "moments", cockpit.Economy, needs=("cockpit",)),
    # samples in full
    "vmap": Tool("vmap(grad)", "samples", Vmapped, cost=3.0),
    "opacus-ew": Tool("Opacus, expanded weights", "samples", opacus.ExpandedWeights, needs=("opacus",), cost=3.5),
    # less
    "scope-quarter": Tool("gradscope, subsample: a quarter", "less", _quarter, ours=True, cost=1.2),
    "scope-every": Tool("gradscope, every=16", "less", _watched(every=16), ours=True, cost=1.1, rounds=32),
    "scope-norm-layers": Tool(
        "gradscope, normalisation layers only", "less", _watched(capture="normalization"), ours=True, cost=1.1,
        note="a prediction for the other layers",
    ),
    "scope-no-capture": Tool(
        "gradscope, capture=False, two micro-steps", "less", WithoutCapture, ours=True, cost=1.2, against="plain-2"
    ),
    "signs": Tool("random signs alone", "less", RandomSigns, cost=1.8),
    "gns": Tool(
        "gns-pytorch, all samples and parameters", "less",
        partial(gns_pytorch.NoiseScale, param_percentage=1.0, batch_percentage=1.0), needs=("gns_pytorch",), cost=40.0,
        rounds=3,
    ),
    "gns-default": Tool(
        "gns-pytorch, its defaults", "less", gns_pytorch.NoiseScale, needs=("gns_pytorch",), cost=8.0, rounds=5,
        note="a quarter of the samples, ten parameters: its figure is of these",
    ),
}  # fmt: skip
