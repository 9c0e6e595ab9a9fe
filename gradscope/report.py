"""The frozen records that users read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradscope import reporter
from gradscope.coverage import Coverage


@dataclass(frozen=True, slots=True)
class Outlier:
    """A sample of the newest window whose gradient stands out.

    Attributes:
        index: the sample's index in the window, from 0.
        id: the user's name of it (see ``Scope.annotate``), or None.
        ratio: its ``‖gᵢ‖`` over the median of all samples.
    """

    index: int
    id: str | None
    ratio: float


@dataclass(frozen=True, slots=True, eq=False)
class Stats:
    """Figures of one parameter, one layer, or the whole model.

    Over several windows ``trace_cov`` and ``grad_sq`` are the windows' means and ``noise_scale`` their ratio; ``grad_norm``,
    ``sample_norms``, ``snr``, ``diversity``, ``variance``, ``gsnr`` and ``worst`` are the newest window's.

    Attributes:
        name: the parameter's or layer's name; ``"total"`` for the whole model.
        numel: how many elements these figures cover.
        grad_norm: ``‖ḡ‖`` before any clipping.
        sample_norms: ``‖gᵢ‖``, float64 ``[n]``; NaN where not measured; None where there are none.
        trace_cov: ``tr Σ`` of one sample's gradient at the window's weights, unbiased.
        grad_sq: ``|G|²``, unbiased; may be negative.
        noise_scale: ``tr Σ / |G|²`` in samples; NaN where not resolved.
        noise_scale_interval: 95 % Fieller interval over the windows, within ``[0, ∞)``; ``(0, inf)`` where there is none.
        resolved: whether the mean ``|G|²`` is positive and, from two windows on, the interval's upper end finite.
        snr: ``|G|² / (‖ḡ‖² - |G|²)`` at the effective batch.
        diversity: ``Σ‖gᵢ‖² / ‖Σgᵢ‖²``.
        variance: elementwise variance of ``gᵢ``; only of parameters and with ``moments=True``.
        gsnr: mean over elements of ``Gⱼ² / variance``; only with ``moments=True``.
        preconditioned_noise_scale: ``tr(PΣ) / GᵀPG``; only with ``moments=True`` and an Adam-like optimizer.
        history: the noise scale of each window on its own, oldest first; NaN where a window alone does not resolve it.
        worst: samples of the newest window that stand out, largest first.
        reason: why figures are NaN, in words; empty where they are not.
    """

    name: str
    numel: int
    grad_norm: float
    sample_norms: Tensor | None
    trace_cov: float
    grad_sq: float
    noise_scale: float
    noise_scale_interval: tuple[float, float]
    resolved: bool
    snr: float
    diversity: float
    variance: Tensor | None = None
    gsnr: float | None = None
    preconditioned_noise_scale: float | None = None
    history: tuple[float, ...] = ()
    worst: tuple[Outlier, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What is inside the gradients of the last windows.

    Attributes:
        total: figures of everything that was measured; its ``numel`` says how much that is.
        layers: by qualified module name; ``""`` is the root's own. Measured ones only.
        parameters: by parameter name; measured ones only.
        groups: one mapping per depth: ``groups[d]`` folds layers into their ancestors, and the highest is ``layers`` itself.
        coverage: how every parameter was measured, or why it was not.
        windows: number of windows averaged.
        micro_steps: micro-steps in them.
        samples: samples in them.
        first_window: number of the oldest window averaged, from 1; 0 in an empty report.
        last_window: number of the newest.
        window_samples: ``n`` of the newest window.
        window_micro_steps: micro-steps of the newest window.
        parameter_count: elements of all parameters that require a gradient.
        verdict: what the totals say, in words that claim no more than is known.
        warnings: drift, heavy tails, withheld figures and the like, in words.
        held_bytes: most bytes that uses of re-used parameters kept alive in the newest window until all of them were there;
            ``budget`` bounds it.
        overhead: measured cost as a fraction of the step's time without gradscope (0.14 is +14 %); None where unknown.
            By the host's clock: what a GPU computes beside it is in neither.
    """

    total: Stats
    layers: Mapping[str, Stats]
    parameters: Mapping[str, Stats]
    groups: tuple[Mapping[str, Stats], ...]
    coverage: Mapping[str, Coverage]
    windows: int
    micro_steps: int
    samples: int
    first_window: int
    last_window: int
    window_samples: int
    window_micro_steps: int
    parameter_count: int
    verdict: str
    warnings: tuple[str, ...] = ()
    overhead: float | None = None
    held_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain numbers, strings, lists and dicts; non-finite numbers are None, with a flag beside them."""
        return reporter.to_dict(self)

    def to_json(self, *, indent: int | None = None) -> str:
        """The report as one JSON document; it holds no ``Infinity`` and no ``NaN``."""
        return reporter.to_json(self, indent=indent)

    def render(self, width: int | None = None, *, depth: int | None = None) -> str:
        """The report as plain text, ``width`` columns wide; ``depth`` opens folded blocks."""
        return reporter.render(self, width=width, depth=depth)

    def __str__(self) -> str:
        return self.render()

    def __rich__(self) -> Any:
        return reporter.table(self)

    def _repr_html_(self) -> str:
        return reporter.html(self)
