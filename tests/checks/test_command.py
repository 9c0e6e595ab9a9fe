"""gradscope check module:function."""

import sys
import textwrap

import pytest

from gradscope.cli import main

TRAIN = """
import torch
from torch.nn import functional as F

torch.set_num_threads(1)
model = torch.nn.Linear(3, 2)
batch = torch.randn(12, 3), torch.randn(12, 2)


def loss_fn(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def wrong(model, micro_batches):
    for b in micro_batches:
        loss_fn(model, b).backward()


def right(model, micro_batches):
    n = sum(len(x) for x, _ in micro_batches)
    for b in micro_batches:
        (loss_fn(model, b) * len(b[0]) / n).backward()


def broken(model, micro_batches):
    raise ZeroDivisionError("the step's own")


def wrong_case():
    return wrong, model, loss_fn, batch


def right_case():
    return right, model, loss_fn, batch, {"split": [2, 3]}


def broken_case():
    return broken, model, loss_fn, batch


def no_case():
    return model
"""


@pytest.fixture(autouse=True)
def train(tmp_path, monkeypatch):
    (tmp_path / "train_for_check.py").write_text(textwrap.dedent(TRAIN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("train_for_check", None)


def test_a_right_step_is_status_zero(capsys):
    assert main(["check", "train_for_check:right_case"]) == 0
    assert "right" in capsys.readouterr().out


def test_a_wrong_step_is_status_one_with_the_diagnosis(capsys):
    assert main(["check", "train_for_check:wrong_case"]) == 1
    out = capsys.readouterr().out
    assert "Likely cause: not divided" in out
    assert "What to change:" in out


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("train_for_check:broken_case", "ZeroDivisionError: the step's own"),
        ("train_for_check:no_case", "must return (step, model, loss_fn, batch)"),
        ("train_for_check:missing", "could not be imported or called"),
        ("no_such_module:case", "could not be imported or called"),
        ("train_for_check", "module:function"),
    ],
)
def test_what_cannot_be_run_is_status_two(target, message, capsys):
    assert main(["check", target]) == 2
    assert message in capsys.readouterr().err
