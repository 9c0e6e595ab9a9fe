"""``top`` and ``--follow`` where they live: in a terminal."""

import sys

import pytest

if sys.platform == "win32":
    pytest.skip("pseudo-terminals are POSIX", allow_module_level=True)

from runlogs import PARAMETERS, window
from terminal import Terminal

from gradscope.runlog import RunLogWriter

INTO_SCREEN, OUT_OF_SCREEN = r"\x1b\[\?1049h", r"\x1b\[\?1049l"


@pytest.fixture
def log(tmp_path):
    with RunLogWriter(tmp_path / "run.jsonl", PARAMETERS) as log:
        for index in range(1, 8):
            log.write(window(index))
        yield log


def test_top_sorts_folds_scrolls_follows_and_leaves_the_terminal_as_it_was(log):
    with Terminal("top", str(log.path), lines=10) as terminal:
        terminal.wait_for(INTO_SCREEN)
        first = terminal.wait_for(r"s sort: model   f fold: 1/3   ↑↓ 1–3 of 4")
        assert "windows 1–7" in first
        assert first.index("wte") < first.index("blocks.0")
        terminal.press("s")
        terminal.wait_for("sort: noise")
        terminal.press("ss")
        by_name = terminal.wait_for("sort: name")
        assert by_name.rindex("(model)") < by_name.rindex("blocks.0")
        terminal.press("f")
        assert "blocks.0.attn" in terminal.wait_for("fold: 2/3   ↑↓ 1–3 of 5")
        terminal.press("\x1b[B\x1bOB")
        terminal.wait_for("↑↓ 3–5 of 5")
        terminal.press("\x1b[A")
        terminal.wait_for("↑↓ 2–4 of 5")
        log.write(window(8))
        terminal.wait_for("windows 1–8")
        terminal.press("q")
        assert terminal.finish() == 0
        terminal.wait_for(OUT_OF_SCREEN)
        assert terminal.settings() == terminal.before


def test_ctrl_c_leaves_top_with_status_0_and_the_terminal_as_it_was(log):
    with Terminal("top", str(log.path), "--depth", "9") as terminal:
        terminal.wait_for("fold: 3/3")
        terminal.interrupt()
        assert terminal.finish() == 0
        assert "Traceback" not in terminal.output
        assert terminal.settings() == terminal.before


def test_following_redraws_in_a_terminal_and_ctrl_c_ends_it_with_status_0(log):
    with Terminal("report", str(log.path), "--follow") as terminal:
        terminal.wait_for("windows 1–7")
        log.write(window(8))
        terminal.wait_for("windows 1–8")
        terminal.interrupt()
        assert terminal.finish() == 0
        assert "Traceback" not in terminal.output


def test_a_file_that_vanishes_is_one_message_after_the_screen_is_left(log):
    with Terminal("top", str(log.path)) as terminal:
        terminal.wait_for("sort: model")
        log.path.unlink()
        assert terminal.finish() == 2
        assert "There is no file" in terminal.wait_for(OUT_OF_SCREEN + ".*There is no file")
        assert "Traceback" not in terminal.output
        assert terminal.settings() == terminal.before
