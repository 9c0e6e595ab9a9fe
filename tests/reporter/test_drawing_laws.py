"""What holds of every drawing of every report."""

import dataclasses
import io
import math
import unicodedata

import pytest
from reports import REPORTS, language_model, long_names, report, stats, thin_evidence, withheld
from rich.cells import cell_len
from rich.console import Console

from gradscope import reporter
from gradscope.coverage import Coverage
from gradscope.reporter.glyphs import ASCII, UNICODE, glyphs_for

WIDTHS = [24, 30, 40, 55, 72, 80, 81, 100, 120, 200]
each_report = pytest.mark.parametrize("name", REPORTS)


def printed(shown, *, encoding="utf-8", **options):
    """What a console with that encoding writes, as bytes."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    Console(file=file, **{"width": 80, "_environ": {}} | options).print(shown)
    file.flush()
    return raw.getvalue()


@each_report
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_no_line_is_wider_than_asked(name, width, glyphs):
    for line in reporter.render(REPORTS[name](), width, glyphs=glyphs).splitlines():
        assert cell_len(line) <= width
        assert line == line.rstrip()


@each_report
def test_nothing_that_is_drawn_is_a_control_character(name):
    for text in (reporter.render(REPORTS[name](), 80), reporter.log_line(REPORTS[name]())):
        assert {unicodedata.category(c) for c in text.replace("\n", "")}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})


@each_report
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "koi8-r", "utf-16"])
def test_every_encoding_can_hold_the_report_drawn_for_it(name, encoding):
    reporter.render(REPORTS[name](), 80, glyphs=glyphs_for(encoding)).encode(encoding)
    printed(REPORTS[name](), encoding=encoding)


def test_an_unknown_encoding_gets_ascii():
    assert glyphs_for("no-such-encoding") is ASCII
    assert glyphs_for(None) is UNICODE


@each_report
def test_a_console_prints_what_render_renders(name):
    lines = printed(REPORTS[name]()).decode().splitlines()
    assert [line.rstrip() for line in lines] == reporter.render(REPORTS[name](), 80).splitlines()


@each_report
def test_piped_output_has_no_escape_codes(name):
    assert b"\x1b" not in printed(REPORTS[name]())


def test_a_terminal_gets_styles_and_no_color_takes_the_colours_out():
    coloured = printed(thin_evidence(), force_terminal=True, color_system="standard")
    assert b"\x1b[33m" in coloured  # the warnings, in yellow
    plain = printed(thin_evidence(), force_terminal=True, color_system="standard", no_color=True)
    assert b"\x1b[33m" not in plain
    assert b"\x1b[1m" in plain


def test_names_are_text_and_never_markup():
    shown = printed(REPORTS["hostile"]()).decode()
    assert "[red]x[/]" in shown
    assert "a\\x1b[2Jb\\nc" in shown
    assert "[bold]loud[/bold]\\r\\n" in shown


def test_a_scale_that_is_not_resolved_is_words_and_never_zero():
    rows = reporter.render(thin_evidence(), 80, glyphs=UNICODE).splitlines()
    assert "≥ 340" in next(row for row in rows if row.startswith("encoder.layer.0"))
    assert "not resolved" in next(row for row in rows if row.startswith("encoder.layer.1"))
    assert "not resolved" in next(row for row in rows if row.startswith("pooler"))
    assert not any(cell == "0" for row in rows[3:7] for cell in row.replace("< 0", "").split())


def test_a_figure_that_is_nan_is_a_dash_and_its_reason_stands_below_once():
    text = reporter.render(REPORTS["single_sample"](), 80, glyphs=UNICODE)
    assert text.count("a window of one sample has no variance") == 1
    assert "nan" not in text.lower()


def test_parameters_that_share_a_reason_take_one_line():
    text = " ".join(reporter.render(withheld(), 120, glyphs=UNICODE).split())
    assert text.count("BatchNorm2d in training mode") == 1
    assert "and 298 more" in text


def test_a_mismatch_is_said_where_the_check_is_said():
    text = reporter.render(withheld(), 120, glyphs=UNICODE)
    assert "FAILS in 1 parameter (largest error 3e-1): figures withheld" in text
    assert "mismatch      neck.proj.weight" in text


def test_the_largest_error_leaves_unchecked_parameters_aside_and_says_so():
    coverage = {"a": Coverage("exact", "linear", "", 2e-7), "b": Coverage("exact", "linear", "", math.nan)}
    text = reporter.render(report([stats("a"), stats("b")], coverage=coverage), 120, glyphs=UNICODE)
    assert "ok (largest error 2e-7), 1 of 2 parameters unchecked" in text


def test_names_cut_to_fit_stay_apart():
    for width in (40, 80):
        lines = reporter.render(long_names(), width, glyphs=UNICODE).splitlines()
        first = lines.index(next(line for line in lines if line.startswith("─"))) + 1
        names = [line.split("  ")[0] for line in lines[first : first + 4]]
        assert len(set(names)) == 4


def test_depth_opens_folded_layers():
    folded, opened = (reporter.render(language_model(), 80, depth) for depth in (0, 1))
    assert "blocks.0.attn" not in folded
    assert "blocks.0.attn" in opened
    assert reporter.render(language_model(), 80, 99) == opened


def test_one_window_has_no_interval_column():
    one = report([stats("a", interval=(0.0, math.inf))], windows=1, total=stats("total", interval=(0.0, math.inf)))
    assert "95 %" not in reporter.render(one, 80)
    assert "[" not in reporter.render(dataclasses.replace(one, verdict=""), 80)


def test_windows_that_were_skipped_are_not_claimed():
    skipping = dataclasses.replace(language_model(), windows=5, first_window=80, last_window=100)
    assert "average over 5 windows of 80–100" in reporter.render(skipping, 80, glyphs=UNICODE)


def test_the_width_is_the_terminals_where_none_is_given(monkeypatch):
    monkeypatch.setenv("COLUMNS", "44")
    assert max(map(cell_len, str(language_model()).splitlines())) <= 44


def test_figures_that_need_moments_have_columns_only_where_there_are_any():
    moments = report([stats("a", gsnr=0.02, preconditioned_noise_scale=12.0), stats("b")])
    assert "gsnr  precond." in reporter.render(moments, 120)
    assert "gsnr" not in reporter.render(language_model(), 120)
