import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import torch
from reports import REPORTS, hostile, language_model, report, stats, thin_evidence, withheld

from gradscope import reporter

each_report = pytest.mark.parametrize("name", REPORTS)


def no_constant(word):
    raise AssertionError(f"{word} is not JSON")


@each_report
def test_json_holds_no_infinity_and_no_nan(name):
    json.loads(REPORTS[name]().to_json(), parse_constant=no_constant)


def test_a_number_that_is_not_finite_is_null_and_flagged():
    found = json.loads(thin_evidence().to_json())["layers"]["encoder.layer.0"]
    assert found["noise_scale"] is None
    assert found["noise_scale_interval"] == [340.0, None]
    assert found["not_finite"]["noise_scale"] == "nan"
    assert found["not_finite"]["noise_scale_interval.1"] == "inf"


def test_a_record_of_finite_numbers_has_no_flags():
    assert "not_finite" not in json.loads(language_model().to_json())["layers"]["wte"]


def test_a_dict_holds_the_reports_figures():
    original = language_model()
    found = original.to_dict()
    assert found["total"]["noise_scale"] == original.total.noise_scale
    assert found["layers"]["wte"]["worst"] == [{"index": 17, "id": None, "ratio": 9.4}]
    assert found["groups"][1]["blocks.0.attn"]["grad_norm"] == original.groups[1]["blocks.0.attn"].grad_norm
    assert found["windows"] == 20


def test_sample_norms_are_a_list_with_null_where_not_measured():
    norms = torch.tensor([1.0, math.nan, 2.5], dtype=torch.float64)
    found = report([stats("a", sample_norms=norms, variance=torch.ones(3))]).to_dict()["layers"]["a"]
    assert found["sample_norms"] == [1.0, None, 2.5]
    assert found["not_finite"]["sample_norms.1"] == "nan"
    assert "variance" not in found


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@each_report
def test_html_is_well_formed_and_made_of_its_own_tags_alone(name):
    parser = Tags()
    parser.feed(REPORTS[name]()._repr_html_())
    assert not parser.open
    assert parser.tags <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}


def test_html_opens_to_every_layer():
    assert "all 11 layers" in language_model()._repr_html_()
    assert "<details>" not in withheld()._repr_html_()


@each_report
def test_svg_is_well_formed(name):
    root = ElementTree.fromstring(reporter.svg(REPORTS[name]()))
    assert root.tag.endswith("svg")


def test_svg_shows_the_names_as_text():
    text = "".join(ElementTree.fromstring(reporter.svg(hostile())).itertext()).replace("\u00a0", " ")
    assert "[red]x[/]" in text
    assert "<b>&amp;" in text


def test_a_log_line_is_one_line_of_ascii_pairs():
    for make in REPORTS.values():
        line = reporter.log_line(make())
        assert line.isascii()
        assert line.isprintable()
        assert all(pair.count("=") >= 1 for pair in line.split()[1:])


def test_a_log_line_says_what_is_not_resolved():
    assert "noise=>=340 " in reporter.log_line(thin_evidence())
    nothing = dataclasses.replace(thin_evidence(), total=REPORTS["single_sample"]().total)
    assert "noise=unresolved " in reporter.log_line(nothing)


def test_every_reporter_is_in_the_table():
    for name, make in reporter.REPORTERS.items():
        assert make(language_model()), name
