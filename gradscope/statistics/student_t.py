"""Student's t distribution, for a whole number of degrees of freedom."""

from __future__ import annotations

import math
from functools import lru_cache


def student_t_inside(t: float, freedom: int) -> float:
    """Probability that ``|T| ≤ t`` for Student's t with ``freedom`` degrees of freedom.

    The finite series in ``θ = atan(t/√ν)``: for odd ``ν``, ``2/π · (θ + sin θ · (cos θ + 2/3 cos³ θ + … ))``; for even
    ``ν``, ``sin θ · (1 + 1/2 cos² θ + 1·3/(2·4) cos⁴ θ + …)``.

    Args:
        t: not negative.
        freedom: ``ν``, at least 1.

    Source:
        Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(freedom))
    cos_sq = math.cos(theta) ** 2
    odd = freedom % 2
    term = math.cos(theta) if odd else 1.0
    series = 0.0
    for k in range(1 + odd, freedom, 2):
        series += term
        term *= cos_sq * k / (k + 1)
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * series)
    return math.sin(theta) * series


@lru_cache(maxsize=1024)
def student_t_quantile(confidence: float, freedom: int) -> float:
    """The ``t`` with ``P(|T| ≤ t) = confidence``: the two-sided quantile of Student's t.

    ``student_t_inside`` is inverted by bisection, to the last digit.

    Args:
        confidence: within ``(0, 1)``; 0.95 for a 95 % interval.
        freedom: degrees of freedom, at least 1.

    Raises:
        ValueError: one of the two lies outside its range.
    """
    if not 0 < confidence < 1 or freedom < 1:
        raise ValueError(f"student_t_quantile: got {confidence=}, {freedom=}; need 0 < confidence < 1 and freedom ≥ 1")
    low, high = 0.0, 1.0
    while student_t_inside(high, freedom) < confidence:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if student_t_inside(middle, freedom) < confidence else (low, middle)
    return high
