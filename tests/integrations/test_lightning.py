"""Lightning, under both of its names."""

import importlib
from dataclasses import replace

import pytest
import torch
from plain_loop import (
    WAYS,
    How,
    Run,
    assert_same_figures,
    assert_same_training,
    batches,
    build,
    hooks_on,
    loss_of,
    plain,
)

import gradscope

pytest.importorskip("lightning")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*val_dataloader.*"),
]

NAMES = pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])


def packages(name):
    pl = importlib.import_module("lightning.pytorch" if name == "lightning" else "pytorch_lightning")
    return pl, importlib.import_module(f"gradscope.integrations.{name}").GradscopeCallback


def module(pl, how, style="part"):
    """A module whose training step calls the model in it, or itself."""

    class Trained(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = build(how)

        def forward(self, letters):
            return self.model(letters)

        def training_step(self, letters, i):
            call = self.model if style == "part" else self
            return loss_of(call(letters[:, :-1]), letters) * how.factor(i)

        def validation_step(self, letters, i):
            return loss_of(self(letters[:, :-1]), letters)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Trained()


def trainer(pl, how, folder, callbacks, **settings):
    plugins = []
    if how.scaled:
        precision = importlib.import_module(f"{pl.__name__}.plugins.precision")
        plugins = [precision.MixedPrecision("16-mixed", "cpu", scaler=how.scaler)]
    defaults = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
        "accumulate_grad_batches": how.k, "gradient_clip_val": how.clip, "log_every_n_steps": 1, "plugins": plugins,
        "precision": "bf16-mixed" if how.autocast and not plugins else None,
    }  # fmt: skip
    return pl.Trainer(**(defaults | {"callbacks": callbacks} | settings))


def seeds(pl):
    """Dropout draws what it draws in the plain loop."""

    class Seeds(pl.Callback):
        def on_train_start(self, *args):
            torch.manual_seed(1)

    return Seeds()


def fit(name, how, folder, *, watched=True, style="part", **settings):
    """The run, and the callback; the random state is that of the plain loop when the first batch is drawn."""
    pl, callback_class = packages(name)
    callback = callback_class(**how.options) if watched else None

    model = module(pl, how, style)
    runs = trainer(pl, how, folder, [one for one in (callback, seeds(pl)) if one is not None], **settings)
    loader = torch.utils.data.DataLoader(batches(), batch_size=None, shuffle=False)
    runs.fit(model, loader)
    return Run(callback.scope.report(last=100) if watched else None, model), callback


def way(name):
    """In Lightning a GradScaler comes with float16."""
    how = WAYS[name]
    return replace(how, autocast=torch.float16) if how.scaled else how


@NAMES
@pytest.mark.parametrize("name_of_way", WAYS)
def test_figures_are_those_of_the_plain_loop(name, name_of_way, tmp_path):
    expected = plain(way(name_of_way))
    found, _ = fit(name, way(name_of_way), tmp_path)
    assert_same_figures(found.report, expected.report, drop="model.")
    assert_same_training(found, expected, drop="model.")


@pytest.mark.parametrize("name_of_way", ["k=4", "GradScaler, a step skipped"])
def test_training_is_bitwise_the_same_without_the_callback(name_of_way, tmp_path):
    watched, _ = fit("lightning", way(name_of_way), tmp_path)
    alone, _ = fit("lightning", way(name_of_way), tmp_path, watched=False)
    assert_same_training(watched, alone)


@pytest.mark.parametrize("style", ["part", "itself"])
def test_layouts_are_measured_whatever_the_training_step_calls(style, tmp_path):
    run, _ = fit("lightning", How(), tmp_path, style=style)
    assert_same_figures(run.report, plain(How()).report, drop="model.")
    assert not any(coverage.reason for coverage in run.report.coverage.values())


def test_a_training_step_may_call_several_parts(tmp_path):
    pl, callback_class = packages("lightning")

    class Parts(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = build(How())

        def training_step(self, letters, i):
            parts = self.model
            x = parts.embedding(letters[:, :-1]).cumsum(1)
            return loss_of(parts.head(x + parts.mix(parts.norm(x))), letters)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Several(Parts):
        def __init__(self):
            super().__init__()
            for name, part in list(self.model.named_children()):
                self.add_module(name, part)
            del self.model

        def training_step(self, letters, i):
            x = self.embedding(letters[:, :-1]).cumsum(1)
            return loss_of(self.head(x + self.mix(self.norm(x))), letters)

    callback = callback_class()
    runs = trainer(pl, How(), tmp_path, [callback, seeds(pl)])
    runs.fit(Several(), torch.utils.data.DataLoader(batches(), batch_size=None))
    assert_same_figures(callback.scope.report(last=100), plain(How()).report)


def test_two_optimizers_by_hand_are_measured_or_said(tmp_path):
    pl, callback_class = packages("lightning")

    class Turns(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.model = build(How())

        def training_step(self, letters, i):
            for optimizer in self.optimizers():
                self.manual_backward(loss_of(self.model(letters[:, :-1]), letters))
                optimizer.step()
                self.zero_grad()

        def configure_optimizers(self):
            head = list(self.model.head.parameters())
            rest = [p for p in self.parameters() if all(p is not q for q in head)]
            return torch.optim.SGD(head, lr=0.1), torch.optim.SGD(rest, lr=0.1)

    callback = callback_class()
    trainer(pl, How(), tmp_path, [callback]).fit(Turns(), torch.utils.data.DataLoader(batches(), batch_size=None))
    report = callback.scope.report(last=100)
    # Whether the other optimizer steps for the same gradients shows at the next forward, which the last window has not.
    assert report.windows == 17
    for coverage in report.coverage.values():
        assert coverage.measured or coverage.reason


# -- the life of a fit ---------------------------------------------------------------------------------------------------------


def test_nothing_stays_behind_after_a_fit(tmp_path):
    run, callback = fit("lightning", How(), tmp_path)
    assert hooks_on(run.model) == []
    assert "closed" in repr(callback.scope)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stays_behind_where_a_fit_raises_or_is_interrupted(error, tmp_path):
    pl, callback_class = packages("lightning")
    model, callback = module(pl, How()), callback_class()

    def fails(*args):
        if callback.scope.report().windows == 4:
            raise error("in the middle")

    model.model.head.register_forward_hook(fails)
    runs = trainer(pl, How(), tmp_path, [callback])
    with pytest.raises((error, SystemExit)):
        runs.fit(model, torch.utils.data.DataLoader(batches(), batch_size=None))
    assert len(hooks_on(model)) == 1
    assert "training_step" not in vars(runs.strategy)
    assert callback.scope.report().windows == 4


def test_a_second_fit_is_watched_anew(tmp_path):
    pl, callback_class = packages("lightning")
    model, callback = module(pl, How()), callback_class()
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer(pl, How(), tmp_path, [callback]).fit(model, loader)
    first = callback.scope
    trainer(pl, How(), tmp_path, [callback]).fit(model, loader)
    assert callback.scope is not first
    assert callback.scope.report().windows == 9


def test_validation_in_the_middle_is_no_part_of_a_window(tmp_path):
    pl, callback_class = packages("lightning")
    how, loader = How(dropout=0.0), torch.utils.data.DataLoader(batches(), batch_size=None)
    callback = callback_class()
    trainer(pl, how, tmp_path, [callback], val_check_interval=2).fit(module(pl, how), loader, loader)
    assert_same_figures(callback.scope.report(last=100), plain(how).report, drop="model.")


def test_a_resumed_fit_goes_on(tmp_path):
    pl, callback_class = packages("lightning")
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    first = trainer(pl, How(), tmp_path, [callback_class()])
    first.fit(module(pl, How()), loader)
    first.save_checkpoint(tmp_path / "one.ckpt")
    callback = callback_class()
    again = trainer(pl, How(), tmp_path, [callback], max_epochs=2)
    again.fit(module(pl, How()), loader, ckpt_path=tmp_path / "one.ckpt")
    report = callback.scope.report(last=100)
    assert (report.windows, report.last_window) == (18, 18)


def test_an_unknown_option_is_refused_at_once():
    _, callback_class = packages("lightning")
    with pytest.raises(gradscope.GradscopeError, match=r"no option evry\. It has .*every"):
        callback_class(evry=2)
    with pytest.raises(gradscope.GradscopeError, match="log_every is a whole number"):
        callback_class(log_every=0)


# -- figures in loggers --------------------------------------------------------------------------------------------------------


@NAMES
def test_figures_are_in_the_loggers_own_files(name, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pl, _ = packages(name)
    loggers = importlib.import_module(f"{pl.__name__}.loggers")
    logger = loggers.TensorBoardLogger(tmp_path, name="", version="")
    run, _ = fit(name, How(), tmp_path, logger=[logger, loggers.CSVLogger(tmp_path)], log_every_n_steps=4)
    events = EventAccumulator(str(tmp_path)).Reload()
    found = events.Scalars("gradscope/noise_scale/total")
    # After windows 4 and 8, and what was left; at the steps of Lightning's own metrics.
    windows = events.Scalars("gradscope/window")
    assert [(event.step, event.value) for event in windows] == [(3, 4.0), (7, 8.0), (9, 9.0)]
    assert found[-1].value == pytest.approx(run.report.total.noise_scale, rel=1e-6)
    layers = {tag.removeprefix("gradscope/noise_scale/") for tag in events.Tags()["scalars"] if "noise_scale/" in tag}
    assert layers <= {f"model.{layer}" for layer in ("embedding", "norm", "mix.0", "mix.3", "mix", "head")} | {"total"}
    assert "gradscope/noise_scale/total" in next(tmp_path.rglob("metrics.csv")).read_text().splitlines()[0]


def test_other_callbacks_may_monitor_the_figures(tmp_path):
    pl, callback_class = packages("lightning")
    callback = callback_class()
    runs = trainer(pl, How(), tmp_path, [callback])
    runs.fit(module(pl, How()), torch.utils.data.DataLoader(batches(), batch_size=None))
    grad_norm = callback.scope.report().total.grad_norm
    assert runs.callback_metrics["gradscope/grad_norm/total"] == pytest.approx(grad_norm)


def test_a_logger_that_fails_ends_no_fit(tmp_path):
    pl, callback_class = packages("lightning")
    loggers = importlib.import_module(f"{pl.__name__}.loggers")

    class Full(loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            if any(name.startswith("gradscope") for name in metrics):
                raise OSError("no space left on device")

    callback = callback_class()
    runs = trainer(pl, How(), tmp_path, [callback], logger=Full(tmp_path))
    runs.fit(module(pl, How()), torch.utils.data.DataLoader(batches(), batch_size=None))
    assert runs.global_step == 9
    assert any("no space left" in line for line in callback.scope.report().warnings)
