"""Reports with made-up, consistent figures: what the drawings are tested on."""

import dataclasses
import math

from gradscope.coverage import Coverage
from gradscope.report import Outlier, Report, Stats

NAN = math.nan
INF = math.inf


def stats(name, *, noise=75.0, interval=(60.0, 98.0), resolved=True, norm=0.22, snr=0.43, **others):
    """Figures of a layer; by default a resolved one."""
    grad_sq = norm**2 / (1 + 1 / snr) if snr > 0 else -1e-4
    given = {
        "name": name, "numel": 1000, "grad_norm": norm, "sample_norms": None, "trace_cov": grad_sq * noise,
        "grad_sq": grad_sq, "noise_scale": noise, "noise_scale_interval": interval, "resolved": resolved, "snr": snr,
        "diversity": 1.7, "history": (60.0, 62.0, 66.0, 70.0, 71.0, 74.0, 80.0, 77.0),
        "worst": (Outlier(17, None, 3.84),),
    }  # fmt: skip
    return Stats(**(given | others))


def unresolved(name, *, low=0.0, snr=-0.02, **others):
    return stats(name, noise=NAN, interval=(low, INF), resolved=False, snr=snr, **others)


def report(layers, *, total=None, groups=None, coverage=None, **others):
    by_name = {layer.name: layer for layer in layers}
    given = {
        "total": total or stats("total", noise=85.0, interval=(71.0, 104.0), norm=0.31, snr=0.376, numel=11_000),
        "layers": by_name,
        "parameters": {f"{layer.name}.weight".lstrip("."): layer for layer in layers},
        "groups": (by_name,) if groups is None else groups,
        "coverage": {f"{name}.weight".lstrip("."): Coverage("exact", "linear", "", 3e-7) for name in by_name}
        if coverage is None
        else coverage,
        "windows": 20, "micro_steps": 80, "samples": 640, "first_window": 1181, "last_window": 1200,
        "window_samples": 32, "window_micro_steps": 4, "parameter_count": sum(layer.numel for layer in layers),
        "verdict": (
            "at n=32 noise exceeds signal (B ≈ 85, [71, 104]): a larger batch would cut steps nearly in proportion, at "
            "no fewer samples, if the learning rate is retuned; plain-SGD measure"
        ),
        "overhead": 0.14,
    }  # fmt: skip
    return Report(**(given | others))


def language_model():
    """A small GPT, everything resolved, the folded view."""
    layers = [
        stats("wte", noise=251.0, interval=(204.0, 320.0), norm=3.1e-2, snr=0.127, worst=(Outlier(17, None, 9.4),)),
        stats("wpe", noise=47.2, interval=(41.0, 55.0), norm=8.8e-3, snr=0.68, worst=(Outlier(3, None, 2.1),)),
        *(stats(f"blocks.{i}", noise=75.0 + 23 * i, interval=(60.0 + 20 * i, 98.0 + 30 * i)) for i in range(4)),
        stats("ln_f", noise=12_345.0, interval=(10_204.0, 15_320.0), norm=1.2e-11, snr=0.0026),
    ]
    opened = {f"{layer.name}{part}": dataclasses.replace(layer, name=f"{layer.name}{part}")
              for layer in layers for part in ([".attn", ".mlp"] if "blocks" in layer.name else [""])}  # fmt: skip
    return report(layers, groups=({layer.name: layer for layer in layers}, opened))


def thin_evidence():
    """A little of everything that is not known: one-sided, not resolved, below zero, drift."""
    layers = [
        stats("encoder.embeddings", noise=251.0, interval=(204.0, 320.0), history=(200.0, NAN, 240.0, NAN, 260.0)),
        unresolved("encoder.layer.0", low=340.0, snr=0.012, history=(NAN, 900.0, NAN, NAN, 400.0)),
        unresolved("encoder.layer.1", history=(NAN,) * 5),
        unresolved("pooler", norm=3e-8, snr=-0.3, history=(), worst=()),
    ]
    return report(
        layers,
        total=unresolved("total", low=340.0, snr=0.01),
        verdict="not resolved: the noise scale is at least 340; 20 windows of 32 samples cannot say more",
        warnings=(
            "drift: the halves of these windows differ (B ≈ 120, then 610): the interval covers their average, not the "
            "current value",
            "heavy tails: interval optimistic",
        ),
        overhead=None,
    )


def withheld():
    """Most statuses at once, and many parameters with the same reason."""
    mixes = (
        "BatchNorm2d in training mode mixes the samples of a batch: use eval mode, replace it with GroupNorm, or pass "
        "ignore=[...]"
    )
    layers = [stats("head", noise=17.0, interval=(12.0, 25.0)), stats("", noise=9.0, interval=(5.0, 31.0), norm=0.02)]
    coverage = {
        "head.weight": Coverage("exact", "linear", "", 4e-7),
        "cls_token": Coverage("estimated", "random signs", "no layer owns it, so it has no per-sample figures"),
        "temperature": Coverage("no gradient", "", "nothing in this window's loss depends on it"),
        "stem.weight": Coverage("frozen"),
        "neck.proj.weight": Coverage("mismatch", "linear", "the contributions add up to another gradient", 0.31),
    } | {f"backbone.stages.{i}.conv.weight": Coverage("not measured", "", mixes) for i in range(300)}
    return report(layers, coverage=coverage, parameter_count=310_000)


def single_sample():
    """A window of one sample: nothing can be said of noise."""
    reason = "a window of one sample has no variance: use a larger batch, or accumulate"
    blank = {"noise": NAN, "interval": (0.0, INF), "resolved": False, "snr": NAN, "trace_cov": NAN, "grad_sq": NAN,
             "diversity": NAN, "history": (NAN,), "worst": (), "reason": reason}  # fmt: skip
    return report(
        [stats("fc1", **blank), stats("fc2", **blank)],
        total=stats("total", **blank), windows=1, micro_steps=1, samples=1, first_window=7, last_window=7,
        window_samples=1, window_micro_steps=1, verdict="",
    )  # fmt: skip


def long_names():
    """Names as long as those of real models, and samples that have names of their own."""
    path = "base_model.model.transformer.encoder.layers.{}.self_attention.query_key_value.lora_A.default"
    layers = [
        stats(path.format(i), noise=10.0 ** (i + 1), interval=(8.0 * 10**i, 14.0 * 10**i),
              worst=(Outlier(i, f"imagenet/train/n0144{i}/n0144{i}_10026.JPEG", 12.5),))
        for i in range(3)
    ]  # fmt: skip
    return report([*layers, stats("编码器.层.0.注意力", worst=(Outlier(2, "猫.png", 4.0),))])


def hostile():
    """Names that try to be markup, control codes, or lines of their own."""
    layers = [
        stats("[red]x[/]", worst=(Outlier(1, "[link=file:///etc]a[/link]", 2.0),)),
        stats("a\x1b[2Jb\nc", worst=(Outlier(1, "\x1b]0;title\x07\u202egnp", 2.0),)),
        stats("<b>&amp;", worst=()),
    ]
    return report(layers, verdict="a \x1b[31mred\x1b[0m verdict", warnings=("[bold]loud[/bold]\r\n",))


def empty():
    """Before any window."""
    nothing = stats("total", noise=NAN, interval=(0.0, INF), resolved=False, snr=NAN, norm=NAN, numel=0, trace_cov=NAN,
                    grad_sq=NAN, diversity=NAN, history=(), worst=(), reason="no window was measured yet")  # fmt: skip
    return report([], total=nothing, windows=0, micro_steps=0, samples=0, first_window=0, last_window=0,
                  window_samples=0, window_micro_steps=0, verdict="", overhead=None)  # fmt: skip


REPORTS = {
    make.__name__: make for make in (language_model, thin_evidence, withheld, single_sample, long_names, hostile, empty)
}
