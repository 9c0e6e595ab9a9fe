"""``gradscope run``: the script's own output and numbers, and a report of every model that it trains."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from launching import finished, run, started
from torch import nn

import gradscope
from gradscope.runlog import read_run_log
from gradscope.runlog.schema import HEADER

SCRIPTS = Path(__file__).with_name("scripts")


@pytest.fixture
def folder(tmp_path):
    for script in SCRIPTS.iterdir():
        if script.suffix == ".py":
            shutil.copy(script, tmp_path)
    return tmp_path


def reports(ended):
    """The summary of each model that was reported, and how many windows its report averages."""
    return re.findall(
        r"^gradscope: (.*): [\d,]+ parameters, stepped by (.*)\ngradscope  .*windows? (.*?)  ", ended.err, re.M
    )


# the script's own


@pytest.mark.parametrize("script", ["classifier", "gan", "closures", "scaled", "parts"])
def test_a_script_prints_the_same_digits_and_every_model_is_measured_in_every_window(script, server, folder):
    plain = server.run(folder, f"{script}.py", gradscope=False)
    watched = server.run(folder, f"{script}.py")
    assert watched.out == plain.out
    assert (watched.status, plain.status) == (0, 0)
    expected = {
        "classifier": [("Net", "Adam", "1-7")],
        "gan": [("critic (Critic)", "Adam", "1-6"), ("generator (Generator)", "Adam", "1-6")],
        "closures": [
            ("Sequential", "LBFGS", "1-4"),
            ("Sequential 2", "LBFGS", "1-4"),
            ("Sequential 3", "LBFGS", "1-4"),
        ],
        "scaled": [("model (Sequential)", "SGD", "1-6")],
        "parts": [("encoder (Sequential)", "Adam", "1-6"), ("decoder (Sequential)", "Adam", "1-6")],
    }
    assert reports(watched) == expected[script]
    assert "alive 0" in watched.out or script != "closures"
    assert len(re.findall(r"exact \(100 %\)", watched.err)) == len(expected[script])
    assert "assumed" not in watched.err
    assert "failed" not in watched.err
    assert watched.err.isascii()


def test_the_windows_are_those_of_a_scope_in_the_script(server, folder):
    server.run(folder, "--log", "run.jsonl", "classifier.py")
    source = (folder / "classifier.py").read_text()
    line = "    scope = __import__('gradscope').watch(net, optimizer); scope.log_to('own.jsonl')\n"
    (folder / "own.py").write_text(source.replace("    for step in", f"{line}    for step in"))
    server.run(folder, "own.py", gradscope=False)
    found, own = read_run_log(folder / "run.jsonl"), read_run_log(folder / "own.jsonl")
    assert found.parameters == own.parameters
    assert [window.samples for window in found.windows] == [window.samples for window in own.windows]
    assert _figures(found.windows) == _figures(own.windows)
    assert len(found.windows) == 7
    assert found.windows[-1].micro_steps == 1


def _figures(windows):
    return [
        {name: (sums.grad_sq_norm, sums.contribution_sq_sum) for name, sums in window.parameters.items()}
        for window in windows
    ]


def test_every_log_lines_and_quiet(server, folder):
    ended = server.run(folder, "--every", 2, "--lines", 2, "--log", "logs/run.jsonl", "gan.py")
    words = re.findall(r"^gradscope model=(\w+) window=(\d+) ", ended.err, re.M)
    assert words == [("critic", "3"), ("generator", "3")]
    for name in ("run.jsonl", "run.generator.jsonl"):
        assert [window.index for window in read_run_log(folder / "logs" / name).windows] == [1, 3, 5]
        assert f"logged to logs/{name}" in ended.err
    assert server.run(folder, "--quiet", "--log", "q.jsonl", "gan.py").err == ""
    assert len(read_run_log(folder / "q.jsonl").windows) == 6


def test_depth_opens_folded_layers_and_a_single_row_is_opened_unasked(server, folder):
    folded, opened, unasked = (
        server.run(folder, *depth, "nested.py").err for depth in (["--depth=0"], ["--depth=1"], [])
    )
    assert re.search(r"^body +\d", folded, re.M)
    for ended in (opened, unasked):
        assert re.search(r"^body.first +\d", ended, re.M)


@pytest.mark.parametrize("ending", ["fail", "exit", "word"])
def test_a_script_ends_as_it_would_alone_and_its_report_is_printed(ending, folder):
    plain = started(folder, "classifier.py", ending, gradscope=False)
    watched = finished(started(folder, "classifier.py", ending))
    plain = finished(plain)
    assert (watched.status, watched.out) == (plain.status, plain.out)
    assert plain.status == {"fail": 1, "exit": 3, "word": 1}[ending]
    assert reports(watched) == [("Net", "Adam", "1-7")]
    assert watched.err.endswith(plain.err)
    assert "gradscope" not in watched.err[-len(plain.err) or len(watched.err) :]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_it_as_it_would_alone_and_its_report_is_printed(number, folder):
    ended = []
    for process in (
        started(folder, "classifier.py", "wait"),
        started(folder, "classifier.py", "wait", gradscope=False),
    ):
        for _ in range(14):
            process.stdout.readline()
        process.send_signal(number)
        ended.append(finished(process))
    watched, plain = ended
    assert watched.status == plain.status == -number
    assert reports(watched) == [("Net", "Adam", "1-7")]
    last = "\nKeyboardInterrupt\n" if number == signal.SIGINT else ""
    assert plain.err.endswith(last)
    assert watched.err.endswith(last)
    assert "supervisor" not in watched.err


def test_surroundings_workers_and_children_are_the_scripts_own(folder):
    plain = started(folder, "surroundings.py", "--lr", "3", "-m", "light", gradscope=False)
    watched = finished(started(folder, "--lines", "0", "surroundings.py", "--lr", "3", "-m", "light"))
    plain = finished(plain)
    assert watched.out == plain.out
    assert "light True" in watched.out  # whatever environment the script sets for torch is set in time
    assert reports(watched) == [("model (Linear)", "SGD", "1-6")]
    assert watched.err.count("gradscope:") == 2


def test_a_module_runs_as_with_python_m(folder):
    (folder / "package").mkdir()
    shutil.move(folder / "surroundings.py", folder / "package" / "train.py")
    (folder / "package" / "__init__.py").write_text("")
    plain = started(folder, "-m", "package.train", "--lr", "3", gradscope=False)
    watched = finished(started(folder, "--lines", "0", "-m", "package.train", "--lr", "3"))
    plain = finished(plain)
    assert watched.out == plain.out
    assert (plain.status, watched.status) == (0, 0)
    assert reports(watched) == [("model (Linear)", "SGD", "1-6")]


def test_who_asks_finds_sigterm_untaken(server, folder):
    assert server.run(folder, "signals.py").out == "True\n"


# trainers


@pytest.mark.parametrize(
    ("library", "script", "summary"),
    [
        ("transformers", "trainer", ("model (GPT2LMHeadModel)", "AdamW")),
        ("accelerate", "accelerated", ("model (Sequential)", "AdamW")),
        ("lightning", "lit", ("Classifier", "Adam")),
    ],
)
def test_a_trainers_windows_are_found_the_short_last_one_too(library, script, summary, folder):
    pytest.importorskip(library)
    if library == "transformers":
        pytest.importorskip("accelerate")
    plain = finished(started(folder, f"{script}.py", gradscope=False))
    watched = finished(started(folder, "--log", "run.jsonl", f"{script}.py"))
    assert (plain.status, watched.status) == (0, 0), watched.err
    assert re.sub("'train_runtime.*", "", watched.out) == re.sub("'train_runtime.*", "", plain.out)
    assert reports(watched) == [(*summary, "1-6")]
    log = read_run_log(folder / "run.jsonl")
    assert [(window.micro_steps, window.samples) for window in log.windows] == [(4, 8), (4, 8), (1, 2)] * 2
    assert all(coverage.status == "exact" for window in log.windows for coverage in window.coverage.values())


# torch.compile


@pytest.mark.parametrize("how", ["before", "after", "warm", "itself", "function", "step"])
def test_a_compiled_model_is_measured(how, server, folder):
    plain = server.run(folder, "compiled.py", how, gradscope=False)
    watched = server.run(folder, "compiled.py", how)
    assert watched.out == plain.out
    # A call inside a compiled function cannot be seen before it has stepped.
    assert reports(watched) == [("model (Sequential)", "SGD", "1-4" if how in ("function", "step") else "1-5")]
    assert "4 exact (100 %)" in watched.err
    assert "failed" not in watched.err


@pytest.mark.parametrize("how", ["whole", "whole function"])
def test_a_model_in_one_graph_trains_on_and_the_report_says_what_is_missing(how, server, folder):
    plain = server.run(folder, "compiled.py", how, gradscope=False)
    watched = server.run(folder, "compiled.py", how)
    assert watched.out == plain.out
    assert "fullgraph=True" in watched.err.replace("\n" + " " * 14, " ")


# nothing to report, and why


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            "gradient",
            "model (Linear) was watched, but no backward() brought a gradient to its parameters before any of the 4",
        ),
        ("nothing", "model (Linear) was watched, but SGD never stepped"),
        ("tensor", "SGD stepped tensors that belong to no torch.nn.Module"),
        ("update", "this process made no torch.optim.Optimizer"),
    ],
)
def test_an_empty_report_has_a_reason(how, reason, server, folder):
    ended = server.run(folder, "by_hand.py", how)
    assert ended.status == 0
    assert reason in ended.err
    assert reports(ended) == []
    assert reason in server.run(folder, "--quiet", "by_hand.py", how).err


def test_a_model_whose_forward_is_called_by_name_is_measured_from_its_second_window_on(server, folder):
    ended = server.run(folder, "by_hand.py", "forward")
    assert reports(ended) == [("model (Linear)", "SGD", "1-3")]


def test_a_script_without_torch_is_no_reason_to_import_it(folder):
    (folder / "light.py").write_text("import sys; print('torch' in sys.modules)")
    ended = run(folder, "light.py")
    assert (ended.status, ended.out) == (0, "False\n")
    assert ended.err == "gradscope: nothing to report: the program did not import torch.\n"


@pytest.mark.parametrize("when", ["early", "late"])
def test_a_script_that_watches_its_model_keeps_it(when, server, folder):
    ended = server.run(folder, "watching.py", when)
    assert (ended.status, ended.out) == (0, "4\n")
    assert reports(ended) == []
    assert "models that the script itself watches with gradscope were left to it" in ended.err


def test_a_model_that_cannot_be_watched_trains_on_and_the_reason_is_said(server, folder):
    source = (folder / "classifier.py").read_text().replace("net = Net()", "net = nn.DataParallel(Net())")
    (folder / "classifier.py").write_text(source)
    plain = server.run(folder, "classifier.py", gradscope=False)
    watched = server.run(folder, "classifier.py")
    assert (watched.status, watched.out) == (0, plain.out)
    assert "DataParallel was not watched: nn.DataParallel runs copies of the model in threads" in watched.err


def test_a_failure_of_ours_leaves_the_script_alone_and_is_said(server, folder):
    (folder / "broken.py").write_text(
        "import gradscope.running.attaching as attaching\n"
        "def watch(*_, **__): raise RuntimeError('broken on purpose')\n"
        "attaching.watch = watch\n" + (folder / "classifier.py").read_text()
    )
    plain = server.run(folder, "classifier.py", gradscope=False)
    watched = server.run(folder, "broken.py")
    assert (watched.status, watched.out) == (0, plain.out)
    assert "gradscope failed, and the script went on: RuntimeError: broken on purpose" in watched.err


# the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to run"),
        (["missing.py"], "there is no file missing.py"),
        (["python", "classifier.py"], "Name the script itself"),
        (["."], "is a directory"),
        (["-m", "no.such.module"], "there is no module no.such.module"),
        (["--log", "classifier.py", "classifier.py"], "is no run log of gradscope"),
        (["--log", ".", "classifier.py"], "is a directory; name a file in it"),
        (["--every", "0", "classifier.py"], "0 is less than 1"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_run_is_one_message_and_status_2(arguments, message, server, folder):
    ended = server.run(folder, *arguments)
    assert ended.status == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_a_run_log_is_told_by_how_it_begins(tmp_path):
    from gradscope.commands.run import _MARK

    model = nn.Linear(2, 1)
    with gradscope.watch(model) as scope:
        scope.log_to(tmp_path / "log")
        model(torch.ones(2, 2)).sum().backward()
    start = (tmp_path / "log").read_bytes()
    assert start.startswith(_MARK)
    assert HEADER.match(start)


def test_a_log_that_exists_is_continued(server, folder):
    for _ in range(2):
        assert server.run(folder, "--log", "run.jsonl", "classifier.py").status == 0
    assert [window.index for window in read_run_log(folder / "run.jsonl").windows] == list(range(1, 8))


# ranks


def test_under_torchrun_the_first_rank_reports(folder):
    options = ["--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    plain = started(folder, "-m", "torch.distributed.run", *options, "ranks.py", gradscope=False)
    plain = finished(plain)
    watched = run(
        folder, "-m", "torch.distributed.run", *options, "-m", "gradscope", "run", "--run-log", "run.jsonl", "ranks.py",
        gradscope=False,
    )  # fmt: skip
    assert watched.status == 0, watched.err
    assert sorted(watched.out.splitlines()) == sorted(plain.out.splitlines())
    assert reports(watched) == [("model (Sequential)", "SGD", "1-4")]
    assert len(read_run_log(folder / "run.jsonl").windows) == 4
