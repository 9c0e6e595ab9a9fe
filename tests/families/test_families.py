"""What people train: every parameter measured, and every figure right."""

import importlib.util
import os
from functools import cache
from pathlib import Path

import pytest

from families import FAMILIES
from families.measured import PER_SAMPLE, measure
from families.table import page

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
#: The page is written with these; others may compute their models in other ways.
VERSION = "5.23"


def missing(family):
    return bool(family.needs) and importlib.util.find_spec(family.needs) is None


def case(family):
    skip = pytest.mark.skip(reason=f"{family.needs} is not installed: pip install --group families")
    return pytest.param(family, id=str(family), marks=[skip] if missing(family) else [])


EVERY = pytest.mark.parametrize("family", [case(family) for family in FAMILIES])
SEPARATE = pytest.mark.parametrize("family", [case(family) for family in FAMILIES if not family.mixes])
BOTH = pytest.mark.parametrize("second_pass", [False, True], ids=["first pass", "second pass"])


@cache
def outcome(family, second_pass):
    if second_pass and outcome(family, False).share("exact") == 1:
        return outcome(family, False)
    return measure(family, second_pass=second_pass)


@EVERY
@BOTH
def test_figures_of_single_samples_agree_with_one_backward_per_sample(family, second_pass):
    errors = outcome(family, second_pass).errors()
    assert errors
    assert {name: error for name, error in errors.items() if not error < 1e-3} == {}


@EVERY
def test_what_reached_a_parameter_is_measured_or_said_why_not(family):
    found = outcome(family, False)
    for name in found.truth:
        one = found.report.coverage[name]
        excused = (family.mixes or family.foreign) and one.reason
        assert one.status in (*PER_SAMPLE, "estimated", "no gradient") or excused, (name, one)
        assert one.status != "no gradient" or not found.truth[name].any(), name


@SEPARATE
def test_with_a_second_pass_99_percent_have_figures_of_single_samples(family):
    found = outcome(family, True)
    left = {name: found.report.coverage[name] for name in found.sizes}
    assert found.share(*PER_SAMPLE) >= 0.99, {k: v for k, v in left.items() if v.status not in PER_SAMPLE}


@EVERY
def test_without_the_option_nothing_is_recomputed_above_its_owner(family):
    assert outcome(family, False).share("second pass") == 0


def test_the_page_is_what_was_measured():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    if not transformers.__version__.startswith(VERSION):
        pytest.skip(f"the page was written with transformers {VERSION}")
    text = page({family.name: (outcome(family, False), outcome(family, True)) for family in FAMILIES})
    if os.environ.get("GRADSCOPE_UPDATE_FAMILIES"):
        PAGE.write_text(text, encoding="utf-8")
    assert text == PAGE.read_text(encoding="utf-8"), "GRADSCOPE_UPDATE_FAMILIES=1 writes it"
