"""``top`` and ``--follow`` where they live: in a terminal."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

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


def test_the_screen_is_what_a_person_sees_at_80_columns(log):
    with Terminal("top", str(log.path)) as terminal:
        lines = terminal.shows("q quit", "windows 1–7")
        assert len(lines) == 24
        assert lines[0].startswith("gradscope  average over windows 1–7")
        assert lines[1].split()[:2] == ["layer", "‖ḡ‖"]
        assert lines[-1].startswith("q quit   s sort: model   f fold: 1/3")
        terminal.press("q")
        assert terminal.finish() == 0


def test_a_terminal_that_is_resized_is_filled_anew(log):
    with Terminal("top", str(log.path)) as terminal:
        terminal.shows("q quit", "verdict")
        terminal.resize(60, 10)
        small = terminal.shows(r"q quit .*1–\d of 4\s*$")
        assert max(map(len, small)) <= 60
        terminal.resize(120, 40)
        assert terminal.shows("q quit", "verdict")[39].startswith("q quit")


def test_a_run_that_has_not_begun_is_waited_for(tmp_path):
    path = tmp_path / "later" / "run.jsonl"
    with Terminal("top", str(path)) as terminal:
        terminal.shows("no window measured yet", r"waiting for \S+ +q quit")
        path.parent.mkdir()
        path.write_bytes(b'{"grad')  # a header that is just being written
        time.sleep(0.6)
        terminal.shows(r"waiting for")
        path.unlink()
        with RunLogWriter(path, PARAMETERS) as log:
            log.write(window(1))
            terminal.shows("gradscope  window 1 ", "s sort: model")
            terminal.press("q")
            assert terminal.finish() == 0


def test_a_log_that_is_removed_and_begun_again_is_followed(log):
    with Terminal("top", str(log.path)) as terminal:
        terminal.shows("windows 1–7")
        log.path.unlink()
        terminal.shows("windows 1–7", "waiting for")
        with RunLogWriter(log.path, PARAMETERS) as again:
            again.write(window(1))
            terminal.shows("gradscope  window 1 ", "s sort: model")


def test_a_log_that_is_truncated_and_a_line_that_is_cut_are_survived(log):
    with Terminal("top", str(log.path)) as terminal:
        terminal.shows("windows 1–7")
        start = log.path.read_bytes()
        lines = start.splitlines(keepends=True)
        log.path.write_bytes(b"".join(lines[:3]))
        terminal.shows("windows 1–2")
        with log.path.open("ab") as file:
            file.write(lines[3][:40])
            file.flush()
            time.sleep(0.6)
            terminal.shows("windows 1–2")
            file.write(lines[3][40:])
        terminal.shows("windows 1–3")


def test_another_file_is_refused_at_once(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a log")
    with Terminal("top", str(path)) as terminal:
        assert terminal.finish() == 2
        assert "is not a gradscope run log" in terminal.output
        assert "Traceback" not in terminal.output


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {}], ids=str)
def test_no_color_takes_the_colours_off_the_screen(log, environment):
    log.write(dataclasses.replace(window(8), notices=("something happened",)))
    with Terminal("top", str(log.path), **environment) as terminal:
        terminal.shows("q quit", "something happened")
        assert (terminal.styles == {"default"}) == bool(environment)


def test_top_follows_a_run_of_an_unmodified_script(tmp_path):
    script = Path(__file__).parents[1] / "run" / "scripts" / "classifier.py"
    path = tmp_path / "run.jsonl"
    with Terminal("top", str(path)) as terminal:
        terminal.shows("waiting for")
        command = [sys.executable, "-m", "gradscope", "run", "--quiet", "--log", str(path), str(script)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        terminal.shows("windows 1–7", "hidden", "head")
        terminal.press("q")
        assert terminal.finish() == 0
