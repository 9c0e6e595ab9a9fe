"""Numbers as people read them: three digits at most, thousands shortened, small ones as powers of ten."""

from __future__ import annotations

import math

#: A space at which ``wrap`` does not break, and which it turns into a plain one.
NO_BREAK = "\u00a0"

_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """``value`` to about three digits: ``0.047``, ``4.0``, ``251``, ``1,234``, ``12.3k``, ``1.2e13``."""
    size = abs(value)
    if not math.isfinite(value) or size >= 1e12 or 0 < size < 1e-3:
        return power(value)
    if size < 9.95:
        return f"{value:#.2g}" if value else "0"
    if size < 9999.5:
        return f"{value:,.0f}"
    # The unit is chosen after rounding to three digits, so that 999,999 is 1M and not 1000k.
    rounded = float(f"{value:.3g}")
    unit, letter = next(pair for pair in _UNITS if abs(rounded) >= pair[0])
    return f"{rounded / unit:.3g}{letter}"


def power(value: float, digits: int = 2) -> str:
    """``value`` as digits times a power of ten, without padding: ``3.1e-2``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def share(part: float, whole: float) -> str:
    """``part / whole`` in per cent; neither all nor nothing is claimed where it is not so: ``< 1 %``, ``> 99 %``."""
    if whole <= 0:
        return f"0{NO_BREAK}%"
    percent = 100 * part / whole
    if 0 < percent < 1:
        return f"<{NO_BREAK}1{NO_BREAK}%"
    if 99 < percent < 100:
        return f">{NO_BREAK}99{NO_BREAK}%"
    return f"{percent:.0f}{NO_BREAK}%"
