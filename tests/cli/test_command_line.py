import json
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from runlogs import PARAMETERS, window, windows
from terminal import COMMAND, PATIENCE, piped

from gradscope.cli import main
from gradscope.commands import COMMANDS, doctor
from gradscope.runlog import RunLogWriter
from gradscope.summary import summarise


@pytest.fixture
def path(tmp_path):
    with RunLogWriter(tmp_path / "run.jsonl", PARAMETERS) as log:
        for index in range(1, 13):
            log.write(window(index), overhead=0.125)
    return tmp_path / "run.jsonl"


def run(capsys, *arguments):
    """Status, standard output and standard error of a command in this process."""
    try:
        status = main(list(map(str, arguments)))
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


# report


def test_report_prints_the_report_of_the_run(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = run(capsys, "report", path)
    live = summarise(PARAMETERS, windows(12), overhead=0.125)
    assert [line.rstrip() for line in out.splitlines()] == live.render(80).splitlines()
    assert (status, err) == (0, "")


def test_last_depth_and_width_do_what_they_say(path, capsys):
    _, out, _ = run(capsys, "report", path, "--last", 3, "--depth", 2, "--width", 60)
    assert "windows 10–12" in out
    assert "attn.qkv" in out
    assert max(map(len, out.splitlines())) <= 60


def test_json_is_the_reports_json(path, capsys):
    status, out, _ = run(capsys, "report", path, "--json")
    assert status == 0
    assert json.loads(out)["windows"] == 12


def test_svg_is_written(path, tmp_path, capsys):
    status, out, _ = run(capsys, "report", path, "--svg", tmp_path / "report.svg")
    assert (status, out) == (0, "")
    assert ElementTree.parse(tmp_path / "report.svg").getroot().tag.endswith("svg")


def test_what_could_not_be_read_of_a_log_is_a_warning_in_its_report(path, capsys):
    path.write_bytes(path.read_bytes()[:-20])
    status, out, _ = run(capsys, "report", path)
    assert status == 0
    assert "windows 1–11" in out
    assert "line 13 is torn" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "missing.jsonl"], "gradscope: There is no file missing.jsonl.\n"),
        (["report", "."], "gradscope: . is a directory"),
        (["report", __file__], "is not a gradscope run log: it is text of another kind"),
        (["report", "bad\x1b[2Jname"], "There is no file bad\\x1b[2Jname"),
        (["report"], "the following arguments are required: FILE"),
        (["report", "x", "--last", "0"], "argument --last: 0 is less than 1"),
        (["report", "x", "--width", "wide"], "argument --width: 'wide' is not a whole number"),
        (["report", "x", "--json", "--follow"], "not allowed with argument --json"),
        (["top", "missing.jsonl"], "top needs a terminal"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "the following arguments are required: COMMAND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_run_is_one_message_and_status_2(arguments, message, capsys):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert "\x1b" not in err


def test_a_picture_that_cannot_be_written_is_one_message(path, tmp_path, capsys):
    status, _, err = run(capsys, "report", path, "--svg", tmp_path / "no" / "report.svg")
    assert status == 2
    assert "No such file or directory" in err


def test_a_pipe_gets_no_codes_and_ascii_where_it_can_hold_no_more(path):
    status, out, err = piped("report", str(path), LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (status, err) == (0, b"")
    assert out.isascii()
    assert b"\x1b" not in out
    assert b"||g||" in out


def test_force_color_colours_a_pipe_and_moves_no_cursor(path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    _, out, _ = run(capsys, "report", path)
    assert "\x1b[1m" in out
    assert "\x1b" not in re.sub(r"\x1b\[[0-9;]*m", "", out)


def test_no_color_takes_the_colours_out(path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = run(capsys, "report", path)
    assert "\x1b" not in out


def test_a_reader_that_leaves_is_no_error(path):
    reader = subprocess.Popen(
        [*COMMAND, "report", str(path), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    reader.stdout.close()
    assert reader.stderr.read() == b""
    assert reader.wait(PATIENCE) == 0
    reader.stderr.close()


def test_following_into_a_pipe_is_a_line_per_window_until_ctrl_c(path):
    follower = subprocess.Popen(
        [*COMMAND, "report", str(path), "--follow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FORCE_COLOR": "1"},
    )  # fmt: skip
    assert follower.stdout.readline().startswith("gradscope window=12 n=8 ")
    with RunLogWriter(path, PARAMETERS) as log:
        log.write(window(13))
    assert follower.stdout.readline().startswith("gradscope window=13 n=8 ")
    follower.send_signal(signal.SIGINT)
    out, err = follower.communicate(timeout=PATIENCE)
    assert (follower.returncode, out, err) == (0, "", "")


# the command line itself


def test_the_help_of_every_command_is_light(capsys):
    for name in COMMANDS:
        assert run(capsys, name, "--help")[0] == 0
    code = (
        "import sys; from gradscope.cli import parser; text = parser().format_help(); "
        "print([name for name in ('torch', 'rich', 'numpy', 'sklearn') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_command_is_in_the_help(capsys):
    _, out, _ = run(capsys, "--help")
    for name, command in COMMANDS.items():
        assert f"    {name} " in out
        assert command.summary


def test_the_version_is_printed(capsys):
    status, out, _ = run(capsys, "--version")
    assert status == 0
    assert out.startswith("gradscope ")


# doctor


def test_doctor_finds_nothing_wrong_here(capsys, monkeypatch):
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"gradscope": ["torch-gradscope"] * 2})
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    for name in ("python", "torch", "rich", "numpy", "gradscope", "import name", "output"):
        assert f"ok  {name}" in out


def test_doctor_names_the_other_distribution_and_the_way_out(capsys, monkeypatch):
    monkeypatch.setattr(
        "importlib.metadata.packages_distributions", lambda: {"gradscope": ["torch_gradscope", "gradscope"]}
    )
    status, out, _ = run(capsys, "doctor")
    assert status == 1
    assert "'gradscope' is installed by gradscope and torch_gradscope" in out
    assert "pip uninstall gradscope, then pip install --force-reinstall --no-deps torch-gradscope" in out


def test_doctor_says_what_is_missing_or_too_old(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("torch.__version__", "2.5.1+cpu")
    status, out, _ = run(capsys, "doctor")
    assert status == 1
    assert "!!  rich        cannot be imported" in out
    assert "install rich>=13" in out
    assert "gradscope needs 2.10 or later" in out


def test_doctor_says_where_output_is_ascii():
    assert "drawn in ASCII" in doctor._output("ascii").found
    assert doctor._output("ascii").problem == ""
    assert "▁▂▃" in doctor._output("utf-8").found
