import dataclasses
import gzip
import json
import math
import pickle

import pytest
from runlogs import PARAMETERS, window, windows

from gradscope.coverage import Coverage
from gradscope.errors import GradscopeError, InvalidRunLogError
from gradscope.runlog import RunLogFollower, RunLogWriter, read_run_log
from gradscope.summary import summarise
from gradscope.window import ParameterInfo, ParameterSums


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def write(path, indices, parameters=PARAMETERS, overhead=0.125):
    with RunLogWriter(path, parameters) as log:
        for index in indices:
            log.write(window(index), overhead=overhead)
    return path


def indices(log):
    return [found.index for found in log.windows]


def same(a, b):
    """Equality that takes NaN for equal to itself."""
    return repr(a) == repr(b)


# What is written is what is read.


def test_every_scalar_comes_back_as_it_was(path):
    write(path, range(1, 4))
    for found, original in zip(read_run_log(path).windows, (window(i) for i in range(1, 4)), strict=True):
        for name in ("index", "samples", "micro_steps", "weight_sq_sum", "notices", "coverage"):
            assert same(getattr(found, name), getattr(original, name)), name
        assert list(found.parameters) == list(original.parameters)
        for name, sums in original.parameters.items():
            assert same(found.parameters[name], dataclasses.replace(sums, sample_sq_norms=None))


def test_numbers_that_json_does_not_have_come_back_too(path):
    odd = ParameterSums(math.inf, math.nan, preconditioned=(-math.inf, 5e-324))
    original = window(1, parameters=PARAMETERS[:1])
    original = dataclasses.replace(original, parameters={"wte.weight": odd}, worst={None: ((3, math.inf),)})
    with RunLogWriter(path, PARAMETERS) as log:
        log.write(original, overhead=math.nan)
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    found = read_run_log(path)
    assert same(found.windows[0].parameters["wte.weight"], odd)
    assert found.windows[0].worst == {None: ((3, math.inf),)}
    assert math.isnan(found.overheads[0])


def test_the_report_of_the_file_is_the_report_of_the_run(path):
    write(path, range(1, 13))
    log = read_run_log(path)
    live = summarise(PARAMETERS, windows(12), overhead=0.125)
    filed = summarise(log.parameters, log.windows, overhead=log.overhead)
    for depth in (0, 1, 2):
        assert filed.render(100, depth=depth) == live.render(100, depth=depth)
    assert "img_12_3.png" in filed.render(100)


def test_the_parameter_table_comes_back(path):
    assert read_run_log(write(path, [1])).parameters == PARAMETERS


def test_ids_of_samples_that_do_not_stand_out_are_left_out(path):
    found = read_run_log(write(path, [1])).windows[0]
    assert found.ids == ("", "", "", "img_1_3.png", "", "", "", "")
    assert b"img_1_4.png" not in path.read_bytes()


def test_what_a_window_noted_itself_is_kept(path):
    noted = dataclasses.replace(window(1), worst={"wte": ((5, 7.5),), None: ((2, 3.5),)})
    with RunLogWriter(path, PARAMETERS) as log:
        log.write(noted)
    found = read_run_log(path).windows[0].worst
    assert found["wte"] == ((5, 7.5),)
    assert found[None] == ((2, 3.5),)
    assert found["blocks.1.mlp"][0][0] == 3


def test_parameters_that_a_window_does_not_hold_stay_out_of_it(path):
    partial = window(1, parameters=PARAMETERS[1:3])
    with RunLogWriter(path, PARAMETERS) as log:
        log.write(partial)
    found = read_run_log(path).windows[0]
    assert list(found.parameters) == ["blocks.0.attn.qkv.weight", "blocks.0.mlp.weight"]
    assert found.coverage == partial.coverage | {"scale": found.coverage["scale"]}


def test_parameters_that_came_later_are_logged_too(path):
    late = ParameterInfo("late.weight", "late", 3, (3,))
    with RunLogWriter(path, PARAMETERS) as log:
        log.write(window(1))
        log.write(window(2, parameters=(*PARAMETERS, late)))
        log.declare((*PARAMETERS, late))
        log.declare((*PARAMETERS, late))
        log.write(window(3, parameters=(*PARAMETERS, late)))
    found = read_run_log(path)
    assert found.parameters == (*PARAMETERS, late)
    assert ["late.weight" in one.parameters for one in found.windows] == [False, True, True]
    assert path.read_text().count("gradscope_run_log") == 2
    assert "late" in summarise(found.parameters, found.windows).layers


def test_the_newest_known_overhead_counts(path):
    with RunLogWriter(path, PARAMETERS) as log:
        log.write(window(1), overhead=0.5)
        log.write(window(2))
    assert read_run_log(path).overheads == (0.5, None)
    assert read_run_log(path).overhead == 0.5


def test_names_of_any_kind_come_back(path):
    odd = ParameterInfo('we"ird\n\x1b[2J\u2028\ud800', "", 1, ())
    original = dataclasses.replace(window(1, parameters=(odd,)), coverage={odd.name: Coverage("exact", "r", "\n")})
    with RunLogWriter(path, (odd,)) as log:
        log.write(original)
    found = read_run_log(path)
    assert found.parameters == (odd,)
    assert same(found.windows[0].coverage, original.coverage)
    assert len(path.read_bytes().splitlines()) == 2


# A run that goes on.


def test_a_log_of_the_same_model_is_continued(path):
    write(path, [1, 2])
    assert indices(read_run_log(write(path, [3, 4]))) == [1, 2, 3, 4]
    assert path.read_text().count("gradscope_run_log") == 1


def test_a_log_of_another_model_is_refused_and_left_as_it_is(path):
    write(path, [1])
    before = path.read_bytes()
    with pytest.raises(InvalidRunLogError, match=r"run log of another model.*5 parameters.*4 differ, first 'scale'"):
        RunLogWriter(path, PARAMETERS[:4])
    assert path.read_bytes() == before


def test_a_file_that_is_no_log_is_refused_and_left_as_it_is(path):
    path.write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(InvalidRunLogError, match="not a gradscope run log: it is text of another kind"):
        RunLogWriter(path, PARAMETERS)
    assert path.read_text() == "epoch,loss\n1,0.5\n"


def test_a_run_that_goes_back_replaces_what_it_measures_again(path):
    write(path, range(1, 7))
    log = read_run_log(write(path, [4, 5]))
    assert indices(log) == [1, 2, 3, 4, 5]
    assert log.problems == ("windows 4 to 6 were left out: in line 8 the run goes back to window 4",)


def test_a_torn_line_is_closed_before_the_next(path):
    write(path, [1, 2])
    path.write_bytes(path.read_bytes()[:-40])
    log = read_run_log(write(path, [3]))
    assert indices(log) == [1, 3]
    assert log.problems == ("line 3 was left out: it is not JSON",)


def test_missing_folders_are_made(tmp_path):
    assert write(tmp_path / "a" / "b" / "run.jsonl", [1]).exists()


# What goes wrong while writing.


def test_a_full_disk_costs_no_more_than_its_line(path):
    class Full:
        """Takes ten bytes of the first line it gets, and then all the others."""

        def __init__(self, file):
            self.file, self.calls = file, 0

        def write(self, rest):
            self.calls += 1
            if self.calls == 2:
                raise OSError(28, "No space left on device")
            return self.file.write(rest[:10] if self.calls == 1 else rest)

        def close(self):
            self.file.close()

    log = RunLogWriter(path, PARAMETERS)
    log._file = Full(log._file)
    with pytest.raises(OSError, match="No space left"):
        log.write(window(1))
    log.write(window(2))
    log.close()
    assert indices(read_run_log(path)) == [2]
    assert read_run_log(path).problems == ("line 2 was left out: it is not JSON",)


def test_a_path_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        RunLogWriter(tmp_path, PARAMETERS)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        RunLogWriter(tmp_path / "file" / "run.jsonl", PARAMETERS)


def test_each_line_is_in_the_file_when_write_returns(path):
    log = RunLogWriter(path, PARAMETERS)
    log.write(window(1))
    assert indices(read_run_log(path)) == [1]
    log.close()
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.write(window(2))


# What goes wrong while reading.


def test_a_torn_last_line_loses_only_itself(path):
    whole = write(path, range(1, 4)).read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last + 1, len(whole) - 1, 97):
        path.write_bytes(whole[:cut])
        log = read_run_log(path)
        assert indices(log) == [1, 2]
        assert log.problems == ("line 4 is torn: the run ended, or is still writing it",)


def test_a_last_line_that_lacks_only_its_end_is_whole(path):
    path.write_bytes(write(path, [1, 2]).read_bytes()[:-1])
    assert indices(read_run_log(path)) == [1, 2]
    assert read_run_log(path).problems == ()


DAMAGE = [
    b"garbage", b"\x00\xff\xfe", b"[1, 2]", b"{}", b"null", b'{"window": 2}', b"[" * 100_000,
    b'{"window":' + b"9" * 9000 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("line", DAMAGE, ids=lambda line: repr(line[:12]))
def test_a_corrupt_line_in_the_middle_is_left_out_and_named(path, line):
    lines = write(path, [1, 2, 3]).read_bytes().splitlines()
    lines[2] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    log = read_run_log(path)
    assert indices(log) == [1, 3]
    assert len(log.problems) == 1
    assert log.problems[0].startswith("line 3 was left out: ")


CHANGES = [
    ("samples", 0), ("samples", True), ("samples", "8"), ("samples", 10**15), ("window", -1), ("window", None),
    ("micro_steps", 1.5), ("weight_sq_sum", "much"), ("grad_sq_norm", [1.0]), ("grad_sq_norm", None),
    ("contribution_sq_sum", [None] * 5), ("coverage", []),
    ("coverage", {"ways": [["good", "", ""]], "way": [0] * 5, "error": [0] * 5}), ("worst", [["a"]]),
    ("ids", {"99": "x"}), ("ids", {"-1": "x"}), ("ids", {"x": "y"}), ("notices", [1]), ("overhead", "free"),
    ("names", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), CHANGES, ids=str)
def test_a_line_with_a_wrong_value_is_left_out_and_named(path, key, value):
    lines = write(path, [1, 2]).read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | {key: value}), lines[2]]) + "\n")
    log = read_run_log(path)
    assert indices(log) == [2]
    assert log.problems[0].startswith("line 2 was left out: ")


def test_keys_of_later_versions_are_let_pass(path):
    lines = write(path, [1]).read_text().splitlines()
    path.write_text(lines[0] + "\n" + json.dumps(json.loads(lines[1]) | {"loss": 2.5}) + "\n\n")
    assert indices(read_run_log(path)) == [1]


def test_figures_after_a_damaged_parameter_table_belong_to_nobody(path):
    with RunLogWriter(path, PARAMETERS) as log:
        log.write(window(1))
        log.declare(PARAMETERS[::-1])
        log.write(window(2))
    damaged = path.read_bytes().replace(b'"name":"scale"', b'"name":3', 2).replace(b'"name":3', b'"name":"scale"', 1)
    path.write_bytes(damaged)
    log = read_run_log(path)
    assert indices(log) == [1]
    assert len(log.problems) == 2


NO_LOGS = {
    "empty": (b"", "is empty"),
    "csv": (b"step,loss\n1,2\n", "it is text of another kind"),
    "long text": (("é" * 5000).encode(), "it is text of another kind"),
    "json": (b'{"loss": 1}\n', "it is JSON of another kind"),
    "json list": (b"[1, 2]\n", "it is JSON of another kind"),
    "gzip": (gzip.compress(b'{"gradscope_run_log": 1}\n'), "it is gzip-compressed: unpack it first"),
    "checkpoint": (b"PK\x03\x04\x00\x00archive/data.pkl", "it is a zip archive or a torch checkpoint"),
    "pickle": (pickle.dumps({"a": 1}), "it is binary"),
    "utf-16": ("{}".encode("utf-16"), "it is binary"),
    "newer": (b'{"gradscope_run_log": 2, "parameters": []}\n', "schema 2, and this gradscope reads schema 1.*upgrade"),
    "odd version": (b'{"gradscope_run_log": "x", "parameters": []}\n', "schema 'x'"),
    "true": (b'{"gradscope_run_log": true, "parameters": []}\n', "schema True"),
    "no table": (b'{"gradscope_run_log": 1}\n', "its parameter table is damaged"),
    "bad table": (b'{"gradscope_run_log": 1, "parameters": [{"name": 3}]}\n', "its parameter table is damaged"),
    "cut header": (b'{"gradscope_run_log": 1, "parameters": [{"na', "breaks off inside its first line"),
    "broken header": (b'{"gradscope_run_log": 1, "parameters": [{"na\n{}\n', "it is not JSON"),
}


@pytest.mark.parametrize(("content", "message"), NO_LOGS.values(), ids=NO_LOGS)
def test_a_file_that_is_no_run_log_is_explained(path, content, message):
    path.write_bytes(content)
    with pytest.raises(InvalidRunLogError, match=message) as caught:
        read_run_log(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, GradscopeError)


@pytest.mark.parametrize(
    ("name", "message"), [("missing.jsonl", "There is no file"), ("", "is a directory"), ("a\0b", "cannot be read")]
)
def test_a_path_that_is_no_file_is_explained(tmp_path, name, message):
    with pytest.raises(InvalidRunLogError, match=message):
        read_run_log(tmp_path / name)


def test_a_log_without_windows_gives_an_empty_report(path):
    log = read_run_log(write(path, []))
    assert log.windows == ()
    assert "no window measured yet" in str(summarise(log.parameters, log.windows))


# A file that grows.


def test_a_follower_takes_in_each_line_once_it_is_whole(path):
    log = RunLogWriter(path, PARAMETERS)
    follower = RunLogFollower(path)
    assert follower.poll() == 0
    log.write(window(1))
    log.write(window(2))
    assert follower.poll() == 2
    assert follower.poll() == 0
    line = path.read_bytes().splitlines(keepends=True)[-1].replace(b'"window":2', b'"window":3')
    with open(path, "ab") as file:
        file.write(line[:50])
        file.flush()
        assert follower.poll() == 0
        file.write(line[50:])
    assert follower.poll() == 1
    assert indices(follower.log) == [1, 2, 3]
    assert follower.log.problems == ()


def test_a_follower_keeps_no_more_than_it_was_asked_to(path):
    write(path, range(1, 30))
    follower = RunLogFollower(path, keep=5)
    assert follower.poll() == 29
    assert indices(follower.log) == [25, 26, 27, 28, 29]
    assert len(follower.log.overheads) == 5


def test_a_follower_starts_over_when_the_file_does(path):
    write(path, range(1, 9))
    follower = RunLogFollower(path)
    follower.poll()
    path.unlink()
    write(path, [1, 2])
    assert follower.poll() == 2
    assert indices(follower.log) == [1, 2]


@pytest.mark.parametrize("torn", ["header", "window"])
def test_a_line_that_a_file_left_torn_is_not_put_before_its_successors(path, torn):
    write(path, range(1, 9))
    whole = path.read_bytes()
    path.write_bytes(whole[:7] if torn == "header" else whole[:-40])
    follower = RunLogFollower(path)
    if torn == "header":
        with pytest.raises(InvalidRunLogError):
            follower.poll()
    else:
        follower.poll()
    again = path.with_name("again")
    write(again, [1, 2])
    again.rename(path)
    assert follower.poll() == 2
    assert indices(follower.log) == [1, 2]
    assert follower.log.problems == ()
