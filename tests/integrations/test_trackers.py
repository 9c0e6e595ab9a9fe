"""Experiment trackers, each with its real library, read back."""

import math
import os
import struct
import sys
import time

import pytest
import torch
from plain_loop import How, batches, build, loss_of

import gradscope
from gradscope import reporter


def train(target, *, each=lambda i: None, **settings):
    """Nine windows; the figures that must be found, by window."""
    model = build(How())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {}
    with gradscope.watch(model, optimizer) as scope:
        scope.log_to(target, **settings)
        for i, letters in enumerate(batches()):
            loss_of(model(letters[:, :-1]), letters).backward()
            optimizer.step()
            optimizer.zero_grad()
            expected[i + 1] = reporter.scalars(scope.report())
            each(i)
    return expected


def assert_held(found, expected, rel=1e-6):
    """Name → value of one window."""
    for name, value in expected.items():
        if name != "gradscope/overhead":
            assert found[name] == pytest.approx(value, rel=rel), name


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        expected = train(writer, every=4)
    events = EventAccumulator(str(tmp_path)).Reload()
    for window in (4, 8, 9):
        found = {
            tag: event.value
            for tag in events.Tags()["scalars"]
            for event in events.Scalars(tag)
            if event.step == window
        }
        assert_held(found, expected[window], rel=1e-5)


def records_in(path):
    """The whole records of a run file of wandb, a log of LevelDB: parts of records in blocks of 32 KiB.

    A file that is still being written may end within a part; that part, and its record, are left for the next look.
    """
    content, place, begun = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32_768 - place % 32_768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if place + 7 + length > len(content):
            return
        begun = (b"" if kind in (1, 2) else begun) + content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield begun


def rows_of(folder):
    """The rows of an offline run of wandb that was finished; its own process may still be writing them."""
    from wandb.proto import wandb_internal_pb2

    for _ in range(300):
        rows, ended = [], False
        for found in records_in(next(folder.rglob("*.wandb"))):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(found)
            ended |= record.WhichOneof("record_type") == "exit"
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): float(item.value_json) for item in items})
        if ended:
            return rows
        time.sleep(0.1)
    raise TimeoutError("wandb has not ended its file")


@pytest.fixture
def wandb_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(dir=str(tmp_path), project="gradscope", settings=wandb.Settings(x_disable_stats=True))
    yield run
    run.finish()


def test_wandb_figures_join_the_rows_that_the_user_ends(wandb_run, tmp_path):
    expected = train(wandb_run, every=1, each=lambda i: wandb_run.log({"loss": float(i)}, step=10 * i))
    wandb_run.finish()
    rows = [row for row in rows_of(tmp_path) if "loss" in row]
    assert [row["_step"] for row in rows] == [10 * i for i in range(9)]
    held = {int(row["gradscope/window"]): row for row in rows_of(tmp_path) if "gradscope/window" in row}
    assert set(held) >= set(range(2, 10))
    for window, row in held.items():
        assert_held(row, expected[window])


def test_wandb_rows_of_their_own(wandb_run, tmp_path):
    expected = train(wandb_run.log, every=4)
    wandb_run.finish()
    rows = rows_of(tmp_path)
    assert [row["gradscope/window"] for row in rows] == [4, 8, 9]
    assert_held(rows[-1], expected[9])


def test_wandb_the_last_figures_are_kept_where_the_user_logs_nothing(wandb_run, tmp_path):
    import wandb

    expected = train(wandb, every=4)
    wandb_run.finish()
    assert_held(rows_of(tmp_path)[-1], expected[9])


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory):
    """Making its database takes seconds: once."""
    module = pytest.importorskip("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        module.set_tracking_uri(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/runs.db")
        yield module


@pytest.mark.parametrize("given", ["module", "run", "client"])
def test_mlflow(given, mlflow):
    with mlflow.start_run() as run:
        expected = train({"module": mlflow, "run": run, "client": mlflow.MlflowClient()}[given], every=4)
    client = mlflow.MlflowClient()
    for name, value in expected[9].items():
        if name != "gradscope/overhead":
            history = client.get_metric_history(run.info.run_id, name.replace("(", "_").replace(")", "_"))
            assert history[-1].step == 9
            assert history[-1].value == pytest.approx(value), name
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "gradscope/window")] == [4, 8, 9]


def test_trackio(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    run = trackio.init(project="gradscope", embed=False)
    expected = train(trackio, every=1, each=lambda i: trackio.log({"loss": float(i)}))
    trackio.finish()
    rows = SQLiteStorage.get_logs("gradscope", run.name)
    losses = [row["step"] for row in rows if "loss" in row]
    assert losses == sorted(losses)
    held = {int(row["gradscope/window"]): row for row in rows if "gradscope/window" in row}
    assert set(held) == set(range(1, 10))
    assert_held(held[9], expected[9])


# -- what is none of these -----------------------------------------------------------------------------------------------------


class Logger:
    """Like a logger of Lightning."""

    def __init__(self):
        self.written = {}

    def log_metrics(self, metrics, step):
        self.written[step] = metrics


def test_an_object_with_log_metrics():
    logger = Logger()
    expected = train(logger)
    assert set(logger.written) == {9}
    assert_held(logger.written[9], expected[9])


def test_a_function():
    written = []
    train(written.append, every=2)
    assert [figures["gradscope/window"] for figures in written] == [2, 4, 6, 8, 9]


@pytest.mark.parametrize(
    ("target", "settings", "says"),
    [
        (object(), {}, "cannot write to a object"),
        ("run.jsonl", {"every": 2}, "a run log holds every window"),
        (print, {"every": 0}, "every is a whole number"),
    ],
    ids=["an object", "every second window of a run log", "every 0"],
)
def test_what_cannot_work_is_refused_at_once(target, settings, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with gradscope.watch(build(How())) as scope, pytest.raises(gradscope.InvalidArgumentError, match=says):
        scope.log_to(target, **settings)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_module_without_a_run_says_what_to_call(name):
    module = pytest.importorskip(name)
    with gradscope.watch(build(How())) as scope, pytest.raises(gradscope.InvalidArgumentError, match="first, or pass"):
        scope.log_to(module)


def test_a_tracker_that_fails_ends_no_training():
    def full(figures):
        raise OSError("no space left on device")

    model = build(How())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.watch(model, optimizer) as scope:
        scope.log_to(full, every=1)
        loss_of(model(batches()[0][:, :-1]), batches()[0]).backward()
        optimizer.step()
        assert any("no space left" in line for line in scope.report().warnings)


def test_what_is_not_known_is_left_out_and_counted():
    import reports

    figures = reporter.scalars(reports.thin_evidence())
    assert "gradscope/noise_scale/total" not in figures
    assert figures["gradscope/noise_scale_low/total"] == 340.0
    assert "gradscope/noise_scale_high/total" not in figures
    assert figures["gradscope/noise_scale/encoder.embeddings"] == 251.0
    assert figures["gradscope/resolved"] == 0.25
    assert all(math.isfinite(value) for value in figures.values())


def test_groups_are_blocks_and_not_parameters():
    import reports

    figures = reporter.scalars(reports.language_model())
    layers = [name for name in figures if name.startswith("gradscope/noise_scale/")]
    assert len(layers) == 8
    opened = reporter.scalars(reports.language_model(), depth=1)
    assert "gradscope/noise_scale/blocks.0.attn" in opened


def test_an_empty_report_has_no_figures():
    with gradscope.watch(build(How())) as scope:
        assert reporter.scalars(scope.report()) == {}
