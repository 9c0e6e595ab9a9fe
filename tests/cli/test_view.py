import math

import pytest
from reports import REPORTS, language_model, thin_evidence
from rich.cells import cell_len

from gradscope.commands.keyboard import keys_in
from gradscope.commands.view import SORTS, View, drawn, pressed
from gradscope.reporter.glyphs import ASCII, UNICODE


def text(screen):
    return ["".join(piece for piece, _ in line).rstrip() for line in screen.lines]


def order(view, report):
    lines = text(drawn(report, view, 100, 60))
    start = next(i for i, line in enumerate(lines) if line.startswith("─")) + 1
    end = next(i for i in range(start, len(lines)) if lines[i].startswith("─"))
    return [line.split()[0] for line in lines[start:end]]


@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
@pytest.mark.parametrize("size", [(24, 8), (40, 12), (80, 24), (200, 60)], ids=str)
@pytest.mark.parametrize("name", REPORTS)
def test_a_screen_is_filled_and_not_overfilled(name, size, glyphs):
    width, height = size
    lines = text(drawn(REPORTS[name](), View(), width, height, glyphs))
    assert max(map(cell_len, lines)) <= width
    assert "q quit" in lines[-1]
    if height >= 12:
        assert len(lines) == height


def test_rows_are_sorted_by_noise_with_bounds_in_their_place_and_the_unknown_last():
    names = order(View(sort="noise"), thin_evidence())
    assert names == ["encoder.layer.0", "encoder.embeddings", "encoder.layer.1", "pooler"]


def test_rows_are_sorted_by_norm_and_by_name():
    assert order(View(sort="norm"), language_model())[-3:] == ["wte", "wpe", "ln_f"]
    assert order(View(sort="name"), language_model())[-3:] == ["ln_f", "wpe", "wte"]


def test_s_goes_through_all_orders_and_back():
    screen, view = drawn(language_model(), View(), 80, 24), View()
    seen = []
    for _ in SORTS:
        view = pressed(view, "s", screen)
        seen.append(view.sort)
    assert seen == ["noise", "norm", "name", "model"]


def test_f_opens_and_folds_again():
    screen = drawn(language_model(), View(), 80, 24)
    opened = pressed(View(), "f", screen)
    assert opened.depth == 1
    assert pressed(opened, "f", screen).depth == 0
    assert pressed(View(depth=9), "f", screen).depth == 0


@pytest.mark.parametrize(
    ("key", "top"), [("down", 3), ("up", 1), ("end", 4), ("home", 0), ("page down", 4), ("page up", 0), ("x", 2)]
)
def test_scrolling_stays_within_the_rows(key, top):
    screen = drawn(language_model(), View(), 80, 10)
    assert (screen.rows, screen.page) == (7, 3)
    assert pressed(View(top=2), key, screen).top == top


def test_scrolling_moves_no_column():
    headers = {text(drawn(language_model(), View(top=top), 80, 10))[1] for top in range(5)}
    assert len(headers) == 1


def test_q_ends_it():
    assert pressed(View(), "q", drawn(language_model(), View(), 80, 24)).over


def test_keys_are_told_apart_however_a_terminal_sends_them():
    assert keys_in("s\x1b[A\x1bOB\x1b[5~\x1b[1;5Cq") == ["s", "up", "down", "page up", "q"]
    assert keys_in("\x1b[H\x1b[4~é") == ["home", "end", "é"]


def test_nothing_measured_is_a_screen_too():
    assert math.isnan(REPORTS["empty"]().total.noise_scale)
    assert text(drawn(REPORTS["empty"](), View(), 80, 24))[0] == "gradscope  no window measured yet"
