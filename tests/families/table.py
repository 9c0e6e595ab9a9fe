"""docs/families.md, from what was measured."""

from __future__ import annotations

from families import GROUPS
from families.measured import Outcome

HEAD = """# Families of models

Every row is a tiny model with random weights that the test suite trains for two windows: four samples, float32, in training
mode with the dropout that the family has. Shares count the elements of trained parameters.

- **exact**: sample by sample, by a closed form, by the operators that consume a parameter, or by recomputing a module alone.
- **second pass**: sample by sample with `watch(..., second_pass=True)`; without it these are estimated,
  or not measured where that would run a custom `autograd.Function` backward twice.
- **estimated**: noise by random signs, no figures of single samples, also with `second_pass=True`.
- **not measured**: withheld, with the reason that the report gives.

`GRADSCOPE_UPDATE_FAMILIES=1 pytest tests/families` writes this page. In each row, what is exact or by a second pass agrees
with one backward per sample in float64 to 1e-3 of its size.
"""


def share(value: float) -> str:
    """A share in percent; nothing where it is nothing."""
    return "" if value == 0 else "100 %" if value == 1 else f"{100 * value:.1f} %"


def row(name: str, first: Outcome, second: Outcome) -> str:
    """One family's row."""
    exact = second.share("exact")
    measured = (exact, second.share("second pass"), second.share("estimated"), second.share("not measured", "mismatch"))
    assert abs(first.share("exact") - exact) < 1e-12, "a second pass changes nothing that is exact without it"
    return f"| {name} | {' | '.join(share(value) for value in measured)} | {reason(second)} |"


def reason(outcome: Outcome) -> str:
    """The first reason for something worse than a second pass."""
    coverage = [outcome.report.coverage[name] for name in outcome.sizes]
    left = [one for one in coverage if one.status not in ("exact", "second pass")]
    return left[0].reason.replace("|", "/") if left else ""


def page(outcomes: dict[str, tuple[Outcome, Outcome]]) -> str:
    """The whole page."""
    lines = [HEAD]
    for title, families in GROUPS.items():
        lines += [f"## {title}", "", "| model | exact | second pass | estimated | not measured | reason |"]
        lines += ["|---|--:|--:|--:|--:|---|"]
        lines += [row(family.name, *outcomes[family.name]) for family in families]
        lines += [""]
    return "\n".join(lines)
