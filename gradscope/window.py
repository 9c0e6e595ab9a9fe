"""One effective minibatch, closed: the additive sums that every figure is derived from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from gradscope.coverage import Coverage


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """Where a parameter lives: its name, the layer it counts in, its size.

    A tied parameter appears once, under its first name in ``named_parameters``; ``aliases`` holds its other names.
    ``layer`` is the qualified name of the module that owns it (``""`` for the root's own).
    """

    name: str
    layer: str
    numel: int
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ParameterSums:
    """What one window knows of one parameter.

    Attributes:
        grad_sq_norm: ``‖ḡ‖²`` where ``ḡ = Σ hᵢ`` is what reached the leaf, before any clipping.
        contribution_sq_sum: ``Σ ‖hᵢ‖²``, or an unbiased estimate of it; NaN beside a finite ``grad_sq_norm`` where it is not
            known (a single micro-step whose samples were not told apart).
        sample_sq_norms: ``‖hᵢ‖²``, float64 ``[n]``; NaN where a sample was not measured. None where the parameter has no
            per-sample figures (estimated), and in windows that are no longer the newest.
        variance: unbiased elementwise variance of ``gᵢ``, of the parameter's shape; only with ``moments=True``.
        signal: unbiased elementwise ``Gⱼ²``, of the parameter's shape; only with ``moments=True``.
        preconditioned: ``(tr(PΣ), GᵀPG)`` with the optimizer's own preconditioner; only where it has one.
    """

    grad_sq_norm: float
    contribution_sq_sum: float
    sample_sq_norms: Tensor | None = None
    variance: Tensor | None = None
    signal: Tensor | None = None
    preconditioned: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One closed effective minibatch.

    Attributes:
        index: number of the window since ``watch``, from 1; windows that ``every`` skips are counted too.
        samples: ``n``.
        micro_steps: number of micro-steps.
        weight_sq_sum: ``V₂ = Σ wᵢ²``, with ``wᵢ = uᵢ / Σu``; ``1/n`` with equal weights.
        parameters: the sums, by parameter name; only parameters whose figures may be shown.
        coverage: how every parameter of the model was measured in this window, or why it was not.
        weights: ``wᵢ``, float64 ``[n]``; None in windows that are no longer the newest.
        ids: the user's names of the samples, or None.
        worst: per layer (and ``None`` for the whole model) the samples that stand out: (index in the window, ratio of its
            ``‖gᵢ‖`` to the median), largest first.
        held_bytes: most bytes that uses of re-used parameters kept alive until all of them were there; autograd would have let
            them go earlier.
        notices: what happened in this window that a reader should know, in words.
    """

    index: int
    samples: int
    micro_steps: int
    weight_sq_sum: float
    parameters: Mapping[str, ParameterSums]
    coverage: Mapping[str, Coverage]
    weights: Tensor | None = None
    ids: tuple[str, ...] | None = None
    worst: Mapping[str | None, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    held_bytes: int = 0
