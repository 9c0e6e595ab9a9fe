"""Training code that was not written here, unmodified: the same losses to the last digit, and a complete report.

nanoGPT and the official PyTorch examples lie in the folder that GRADSCOPE_FOREIGN names (``make test-scripts`` fetches them);
nothing of theirs is part of this repository. Data come from packages: the text of Python's own help, scikit-learn's digits.
"""

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from launching import PATIENCE, finished, started

from gradscope.runlog import read_run_log

FOREIGN = os.environ.get("GRADSCOPE_FOREIGN", "")
STAND_IN = Path(__file__).with_name("stand_in")
GPT = [
    "--dataset=text", "--device=cpu", "--dtype=float32", "--eval_iters=2", "--eval_interval=10", "--log_interval=1",
    "--block_size=32", "--batch_size=8", "--n_layer=2", "--n_head=2", "--n_embd=32", "--max_iters=20",
    "--lr_decay_iters=20", "--warmup_iters=4", "--gradient_accumulation_steps=2",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not FOREIGN, reason="GRADSCOPE_FOREIGN names no folder with nanoGPT and examples: make test-scripts fetches them"
)


def copied(folder, *names):
    """The scripts in a folder of their own."""
    for name in names:
        source = Path(FOREIGN, name)
        if not source.exists():
            pytest.skip(f"there is no {source}")
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


def both(folder, script, *arguments, **environment):
    """The script's output without gradscope, and what it leaves under it; ``RUN.jsonl`` is the log."""
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), str(STAND_IN)])
    plain = finished(started(folder, script, *arguments, gradscope=False, **environment))
    assert plain.status == 0, plain.err
    watched = finished(started(folder, "--log", "run.jsonl", script, *arguments, **environment))
    assert watched.status == 0, watched.err
    assert "gradscope failed" not in watched.err
    return plain.out, watched


def losses(out):
    """The output without times."""
    return re.sub(r"time \S+", "", out)


def assert_complete(path, windows):
    """Every window is there, and every parameter in it is measured or says why it is not."""
    log = read_run_log(path)
    assert [window.index for window in log.windows] == list(range(1, windows + 1))
    assert not log.problems
    for window in log.windows:
        assert set(window.coverage) == {info.name for info in log.parameters}
        for name, coverage in window.coverage.items():
            assert coverage.status != "mismatch", (window.index, name, coverage)
            assert coverage.measured or coverage.reason, (window.index, name, coverage)
    return log


@pytest.fixture
def nano_gpt(tmp_path):
    copied(tmp_path, "nanoGPT")
    text = "\n".join(topics[name] for name in sorted(topics))[:200_000]
    characters = sorted(set(text))
    ids = np.array([characters.index(character) for character in text], dtype=np.uint16)
    (tmp_path / "data" / "text").mkdir(parents=True)
    ids[:180_000].tofile(tmp_path / "data" / "text" / "train.bin")
    ids[180_000:].tofile(tmp_path / "data" / "text" / "val.bin")
    (tmp_path / "data" / "text" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(characters)}))
    return tmp_path


def test_nano_gpt(nano_gpt):
    plain, watched = both(nano_gpt, "train.py", *GPT, "--compile=False", "--dropout=0.1")
    assert losses(watched.out) == losses(plain)
    assert "iter 20: loss" in plain
    log = assert_complete(nano_gpt / "run.jsonl", windows=21)
    assert {coverage.status for window in log.windows for coverage in window.coverage.values()} == {"exact"}
    assert {(window.samples, window.micro_steps) for window in log.windows} == {(16, 2)}
    assert re.search(r"model \(GPT\): [\d,]+ parameters, stepped by AdamW", watched.err)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_nano_gpt_compiled(nano_gpt):
    # Without dropout: hooks part the graph, and each compiled graph draws its random numbers from a seed of its own.
    plain, watched = both(nano_gpt, "train.py", *GPT, "--compile=True", "--dropout=0.0")
    found, expected = ([float(loss) for loss in re.findall(r"loss (\d+\.\d+)", out)] for out in (watched.out, plain))
    assert len(found) == len(expected) > 20
    np.testing.assert_allclose(found, expected, atol=2e-3)
    log = assert_complete(nano_gpt / "run.jsonl", windows=21)
    assert all(coverage.measured for window in log.windows for coverage in window.coverage.values())


def test_nano_gpt_interrupted(nano_gpt):
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = started(nano_gpt, "train.py", *GPT, "--compile=False", "--max_iters=100000", **environment)
    while "iter 8:" not in process.stdout.readline():
        pass
    process.send_signal(2)
    ended = finished(process)
    assert ended.status == -2
    assert ended.err.rstrip().endswith("KeyboardInterrupt")
    assert re.search(r"average over windows 1-\d+  n = 16 \(2 micro-steps\)", ended.err)


@pytest.mark.parametrize("example", ["mnist", "mnist_rnn", "vae"])
def test_digits(example, tmp_path):
    copied(tmp_path, f"examples/{example}")
    (tmp_path / "results").mkdir(exist_ok=True)
    plain, watched = both(tmp_path, "main.py", "--epochs", "2", "--batch-size", "64", "--log-interval", "1")
    assert losses(watched.out) == losses(plain)
    assert plain.count("Loss: ") >= 8
    assert_complete(tmp_path / "run.jsonl", windows=8)
    assert re.search(r"average over windows 1-8  n = 64", watched.err)


def test_dcgan(tmp_path):
    copied(tmp_path, "examples/dcgan")
    arguments = (
        "--dataset fake --imageSize 64 --ngf 8 --ndf 8 --batchSize 16 --niter 1 --workers 1 --manualSeed 1 --outf out"
    )
    plain, watched = both(tmp_path, "main.py", *arguments.split())
    assert losses(watched.out) == losses(plain)
    for name in ("run.jsonl", "run.netG.jsonl"):
        log = assert_complete(tmp_path / name, windows=4)
        reasons = {coverage.reason for coverage in log.windows[-1].coverage.values()}
        assert any("BatchNorm" in reason or "mixes the samples" in reason for reason in reasons)
    for model in ("netD (Discriminator)", "netG (Generator)"):
        assert f"gradscope: {model}: " in watched.err


def test_time_sequence_prediction(tmp_path):
    pytest.importorskip("matplotlib")
    copied(tmp_path, "examples/time_sequence_prediction")
    subprocess.run([sys.executable, "generate_sine_wave.py"], cwd=tmp_path, check=True, timeout=PATIENCE)
    # The script loads an array of numpy, which torch.load refuses by itself since torch 2.6.
    shortened = (
        "import torch; d = torch.load('traindata.pt', weights_only=False); torch.save(d[:24, :40], 'traindata.pt')"
    )
    subprocess.run([sys.executable, "-c", shortened], cwd=tmp_path, check=True, timeout=PATIENCE)
    environment = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    plain, watched = both(tmp_path, "train.py", "--steps", "2", **environment)
    assert losses(watched.out) == losses(plain)
    assert plain.count("\nloss: ") > 20
    log = assert_complete(tmp_path / "run.jsonl", windows=2)
    assert {coverage.status for window in log.windows for coverage in window.coverage.values()} == {"exact"}
    assert "seq (Sequence)" in watched.err


def test_an_example_that_updates_by_hand_says_so(tmp_path):
    copied(tmp_path, "examples/regression")
    plain, watched = both(tmp_path, "main.py", PYTHONHASHSEED="0")
    assert "Loss" in plain
    assert "this process made no torch.optim.Optimizer" in watched.err
