"""`gradscope demo`: what it trains, what it prints, and what it says when it cannot."""

import inspect
import json
import os
import pty
import subprocess
import sys

import pytest
import torch

from gradscope.cli import main
from gradscope.demo.loop import train
from gradscope.demo.tasks import TASKS
from gradscope.demo.text import CONTEXT, CharacterGPT

SMALL = ["--steps", "6", "--micro-batch", "4", "--accumulate", "2"]


def _printed(capsys, *arguments):
    status = main(["demo", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("task", TASKS)
def test_a_task_ends_in_its_report_without_control_codes(capsys, task):
    status, out, err = _printed(capsys, "--task", task, *SMALL)
    assert status == 0
    assert out.startswith(f"{TASKS[task].about}\nsteps 6, accumulate 2, micro-batch 4: effective minibatch 8\n")
    assert "held-out" in out
    assert "noise scale" in out
    assert "\x1b" not in out + err


def test_the_digits_come_first(capsys):
    assert "handwritten digits" in _printed(capsys, *SMALL)[1]


def test_show_code_shows_the_very_loop(capsys):
    status, out, _ = _printed(capsys, "--show-code")
    assert status == 0
    assert out == inspect.getsource(train)
    assert out.count("gradscope.watch(model, optimizer)") == 1


@pytest.mark.parametrize("task", TASKS)
def test_the_loop_trains_as_it_does_without_gradscope(task):
    def trained(watched):
        torch.manual_seed(3)
        problem = TASKS[task].problem()
        micro_batches = list(torch.utils.data.DataLoader(problem.samples, 4))[:6]
        if watched:
            train(problem.model, problem.optimizer, problem.criterion, micro_batches, 2, None, lambda *_: None).close()
            return problem.model.state_dict()
        for step, (x, y) in enumerate(micro_batches, start=1):
            (problem.criterion(problem.model(x), y) / 2).backward()
            if step % 2 == 0:
                problem.optimizer.step()
                problem.optimizer.zero_grad()
        return problem.model.state_dict()

    torch.testing.assert_close(trained(watched=True), trained(watched=False), rtol=0, atol=0)


def test_a_seed_repeats_the_run_and_another_does_not(capsys, tmp_path):
    def windows(seed, name):
        path = tmp_path / name
        main(["demo", *SMALL, "--seed", seed, "--log", str(path)])
        capsys.readouterr()
        return [json.loads(line)["contribution_sq_sum"] for line in path.read_text().splitlines()[1:]]

    first = windows("1", "first.jsonl")
    assert len(first) == 6
    assert windows("1", "again.jsonl") == first
    assert windows("2", "other.jsonl") != first


def test_the_log_is_one_that_report_reads(capsys, tmp_path):
    path = tmp_path / "run.jsonl"
    _printed(capsys, *SMALL, "--log", str(path))
    assert main(["report", str(path)]) == 0
    assert "noise scale" in capsys.readouterr().out


def test_without_scikit_learn_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    status, out, err = _printed(capsys, *SMALL)
    assert status == 2
    assert "pip install scikit-learn" in err
    assert "gradscope demo --task text" in err
    assert "Traceback" not in out + err


def test_the_text_task_needs_nothing_more(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert _printed(capsys, "--task", "text", *SMALL)[0] == 0


def test_a_window_larger_than_the_data_set_is_refused(capsys):
    status, _, err = _printed(capsys, "--task", "diabetes", "--micro-batch", "100", "--accumulate", "4")
    assert status == 2
    assert "400 samples, but there are only 354" in err


@pytest.mark.parametrize("option", ["--steps", "--micro-batch", "--accumulate"])
@pytest.mark.parametrize("value", ["0", "-3", "many"])
def test_a_size_must_be_a_positive_number(capsys, option, value):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", option, value])
    assert option in capsys.readouterr().err


def test_the_gpt_ties_its_head_and_looks_only_back():
    model = CharacterGPT(vocabulary=11)
    assert model.head.weight is model.tokens.weight
    characters = torch.randint(11, (2, CONTEXT))
    changed = characters.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % 11
    torch.testing.assert_close(model(characters)[:, :40], model(changed)[:, :40])
    assert not torch.equal(model(characters)[:, 40:], model(changed)[:, 40:])


def _run(*arguments, **environment):
    command = [sys.executable, "-m", "gradscope", "demo", *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment}, check=True)


def test_piped_output_stays_clean_where_colour_is_forced():
    assert b"\x1b" not in _run(*SMALL, FORCE_COLOR="1").stderr


def test_a_terminal_sees_the_steps_pass():
    main_end, terminal = pty.openpty()
    command = [sys.executable, "-m", "gradscope", "demo", *SMALL]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment) as running:
        out, _ = running.communicate()
    os.close(terminal)
    seen = os.read(main_end, 1 << 16).decode()
    os.close(main_end)
    assert "6/6" in seen
    assert "loss" in seen
    assert b"noise scale" in out
