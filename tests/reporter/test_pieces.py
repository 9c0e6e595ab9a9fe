import math

import pytest
from rich.cells import cell_len

from gradscope.reporter.figures import power, share, short
from gradscope.reporter.glyphs import ASCII, UNICODE
from gradscope.reporter.names import shortened
from gradscope.reporter.sparkline import sparkline
from gradscope.reporter.text import cut_middle, visible, wrap

SHORT = [
    (0, "0"), (1e-12, "1.0e-12"), (0.00123, "0.0012"), (0.047, "0.047"), (0.999, "1.0"), (3, "3.0"), (4.72, "4.7"),
    (9.96, "10"), (47.4, "47"), (251, "251"), (1234, "1,234"), (9999, "9,999"), (9999.6, "10k"), (12345, "12.3k"),
    (999_999, "1M"), (1.5e9, "1.5G"), (3e13, "3.0e13"), (-0.5, "-0.50"), (-2e4, "-20k"), (math.inf, "inf"),
    (math.nan, "nan"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), SHORT)
def test_figures_are_short(value, text):
    assert short(value) == text


def test_powers_are_not_padded():
    assert [power(3.14e-7, 1), power(0.031), power(0.0)] == ["3e-7", "3.1e-2", "0"]


def test_a_share_claims_neither_all_nor_nothing_where_it_is_not_so():
    shown = [share(part, 1000).replace("\u00a0", " ") for part in (0, 1, 500, 999, 1000)]
    assert shown == ["0 %", "< 1 %", "50 %", "> 99 %", "100 %"]
    assert share(0, 0).replace("\u00a0", " ") == "0 %"


def test_the_middle_is_cut_and_the_end_tells():
    assert cut_middle("transformer.h.11.attn.c_proj", 16) == "transf…tn.c_proj"
    assert cut_middle("short", 16) == "short"
    assert cut_middle("abcdef", 2) == "ef"


@pytest.mark.parametrize("width", range(1, 12))
def test_wide_characters_are_cut_by_columns(width):
    assert cell_len(cut_middle("编码器.层.0.注意力", width)) <= width


def test_control_characters_become_visible():
    assert visible("a\x1b[2J\n\u202e\u200b\ud800") == "a\\x1b[2J\\n\\u202e\\u200b\\ud800"
    assert visible("naïve 层 𝛼") == "naïve 层 𝛼"


def test_what_an_encoding_lacks_is_spelled_out():
    assert ASCII.text("‖ḡ‖ ≥ 3 × ½ ✓") == "||g|| >= 3 x \\xbd \\u2713"


def test_lines_break_at_spaces_and_keep_intervals_whole():
    assert wrap("B is [71, 104] or so", 10) == ["B is", "[71, 104]", "or so"]
    assert wrap("abcdefghij kl", 4) == ["abcd", "efgh", "ij", "kl"]
    assert wrap("", 10) == [""]


def test_shared_beginnings_go_first_and_only_as_far_as_needed():
    names = [f"encoder.layers.{i}.attention" for i in range(3)]
    assert shortened(names, 20, UNICODE) == [f"…layers.{i}.attention" for i in range(3)]
    assert shortened(names, 14, UNICODE) == ["…0.attention", "…1.attention", "…2.attention"]
    assert shortened(names, 30, UNICODE) == names


def test_a_cut_is_made_where_it_keeps_names_apart():
    names = ["a" * 10 + str(i) + "b" * 20 for i in range(3)]
    assert len(set(shortened(names, 20, UNICODE))) == 3


def test_a_sparkline_is_logarithmic_between_its_extremes():
    assert sparkline([1, 10, 100], UNICODE, 8) == "▁▅█"
    assert sparkline([1, 10, 100], ASCII, 8) == "_+@"


def test_a_small_change_looks_small():
    assert sparkline([100, 101], UNICODE, 8) == "▄▅"
    assert sparkline([5, 5, 5], UNICODE, 8) == "▅▅▅"


def test_windows_without_a_value_are_gaps_and_no_value_no_line():
    assert sparkline([1, math.nan, -3, 100], UNICODE, 8) == "▁··█"
    assert sparkline([math.nan, math.nan], UNICODE, 8) == ""
    assert sparkline(range(1, 50), UNICODE, 4) == sparkline([46, 47, 48, 49], UNICODE, 4)
