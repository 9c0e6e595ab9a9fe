"""transformers' ``Trainer``: a loss over tokens, normalised over the whole window."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from plain_loop import LETTERS, WAYS, How, Run, assert_same_figures, assert_same_training, batches, hooks_on, step
from torch import nn

import gradscope

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from transformers.utils import logging  # noqa: E402 - only where it is installed

from gradscope.integrations.token_weights import NOT_TOKENS, Divisor, form_of, token_weights  # noqa: E402
from gradscope.integrations.transformers import GradscopeCallback  # noqa: E402

logging.set_verbosity_error()
IGNORED = -100


def rows(padded=True):
    """One dictionary a sequence; labels end earlier in some."""
    found = []
    for number, letters in enumerate(torch.cat(batches())):
        labels = letters.clone()
        if padded:
            labels[len(letters) - number % 5 :] = IGNORED
        found.append({"input_ids": letters, "labels": labels})
    return found


def build(how, dropout=0.0):
    class OnceInfiniteForCausalLM(transformers.LlamaForCausalLM):
        """Its loss becomes infinite once, on request."""

        calls = 0

        def forward(self, input_ids=None, labels=None, **kwargs):
            found = super().forward(input_ids=input_ids, labels=labels, **kwargs)
            found["loss"] = found["loss"] * how.factor(self.calls)
            self.calls += 1
            return found

    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        **shape, vocab_size=len(LETTERS), max_position_embeddings=16, attention_dropout=dropout, use_cache=False
    )
    model = OnceInfiniteForCausalLM(config)
    if how.checkpointed:
        model.gradient_checkpointing_enable()
    return model


def plain(how, *, weighted=True, padded=True):
    """The loop by hand: the sum over tokens, over all tokens of the window."""
    model = build(how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = how.scaler
    model.train()
    data = rows(padded)
    size = len(data) // 9
    steps = [
        {key: torch.stack([row[key] for row in data[i : i + size]]) for key in data[0]}
        for i in range(0, len(data), size)
    ]
    with gradscope.watch(model, optimizer, scaler=scaler, **how.options) as scope:
        for i in range(0, len(steps), how.k):
            window = steps[i : i + how.k]
            items = sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in window)
            for batch in window:
                with torch.autocast("cpu", how.autocast) if how.autocast else nullcontext():
                    loss = model(**batch, num_items_in_batch=items).loss
                if weighted:
                    scope.annotate(weights=(batch["labels"][:, 1:] != IGNORED).sum(1))
                (loss if scaler is None else scaler.scale(loss)).backward()
            step(model, optimizer, scaler, how.clip)
    return Run(scope.report(last=100), model)


def trainer(how, folder, callbacks, *, model=None, data=None, **settings):
    class Ordered(transformers.Trainer):
        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    model = build(how) if model is None else model
    data = rows() if data is None else data
    given = {
        "output_dir": str(folder), "use_cpu": True, "report_to": [], "per_device_train_batch_size": len(data) // 9,
        "gradient_accumulation_steps": how.k, "num_train_epochs": 1, "max_grad_norm": how.clip or 0.0, "logging_steps": 1,
        "bf16": how.autocast == torch.bfloat16, "disable_tqdm": True, "save_strategy": "no", "seed": 0,
        "activation_checkpointing": how.checkpointed, "lr_scheduler_type": "constant", "dataloader_pin_memory": False,
    } | settings  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = transformers.TrainingArguments(**given)
    found = Ordered(model=model, args=args, train_dataset=data, optimizers=(optimizer, None), callbacks=callbacks)
    found.remove_callback(transformers.PrinterCallback)
    # Mixed precision with float16 asks for a GPU; its scaler does not.
    found.accelerator.scaler = how.scaler
    return found


def way(name):
    """Where float16 was not asked for, accelerate clips without unscaling: a scaler comes without clipping here."""
    how = WAYS[name]
    return replace(how, clip=None) if how.scaled else how


@pytest.mark.parametrize("name", WAYS)
def test_figures_are_those_of_the_plain_loop(name, tmp_path):
    how = way(name)
    callback = GradscopeCallback(**how.options)
    runs = trainer(how, tmp_path, [callback])
    runs.train()
    expected = plain(how)
    assert_same_figures(callback.scope.report(last=100), expected.report)
    assert_same_training(Run(None, runs.model), expected)


def test_training_is_bitwise_the_same_without_the_callback(tmp_path):
    found = []
    for callbacks in ([GradscopeCallback()], []):
        runs = trainer(How(k=4), tmp_path, callbacks, model=build(How(), dropout=0.1))
        runs.train()
        found.append(Run(None, runs.model))
    assert_same_training(*found)


def test_callbacks_get_the_trainer_they_belong_to_and_its_log_stays_as_it_was(tmp_path):
    def history(callbacks):
        runs = trainer(How(), tmp_path, callbacks, logging_steps=2)
        runs.train()
        timed = ("runtime", "second")
        return [
            {k: v for k, v in row.items() if not any(word in k for word in timed)} for row in runs.state.log_history
        ]

    watched = history([GradscopeCallback()])
    ours = [row for row in watched if "gradscope/window" in row]
    assert [row["step"] for row in ours] == [2, 4, 6, 8, 9]
    assert [row["gradscope/window"] for row in ours] == [2, 4, 6, 8, 9]
    assert [row for row in watched if row not in ours] == history([])


def test_averages_that_wait_for_the_trainers_own_log_are_left_to_it(tmp_path):
    runs = trainer(How(), tmp_path, [GradscopeCallback(log_every=1)], logging_steps=3)
    seen = []

    class Averages(type(runs)):
        def log(self, logs, *args, **kwargs):
            seen.append(set(logs))
            super().log(logs, *args, **kwargs)

    runs.__class__ = Averages
    runs.train()
    assert sum("loss" in names for names in seen) == 3
    assert not any("gradscope/window" in names for names in seen)


# -- weights -------------------------------------------------------------------------------------------------------------------


def test_without_token_weights_samples_weigh_the_same(tmp_path):
    callback = GradscopeCallback(token_weights=False)
    trainer(How(k=4), tmp_path, [callback]).train()
    report = callback.scope.report(last=100)
    assert_same_figures(report, plain(How(k=4), weighted=False).report)
    weighted = plain(How(k=4)).report
    assert abs(report.total.grad_sq - weighted.total.grad_sq) > 1e-4 * abs(weighted.total.grad_sq)


def test_token_counts_make_the_signal_unbiased_where_sequences_differ_in_length():
    """One gradient per token, the same for all: the signal is its square, and equal weights find less."""
    counts = torch.tensor([1.0, 2.0, 9.0, 4.0], dtype=torch.float64)
    model = nn.Linear(1, 1, bias=False).double()
    found = []
    for weights in (counts, None):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        with gradscope.watch(model, optimizer) as scope:
            output = model(torch.ones(4, 1, dtype=torch.float64))
            scope.annotate(weights=weights)
            (counts[:, None] * output).sum().div(counts.sum()).backward()
            optimizer.step()
        found.append(scope.report().total.grad_sq)
    assert found[0] == pytest.approx(1.0)
    assert found[1] < 0.9


def model_of(name):
    torch.manual_seed(0)
    shape = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    if name == "BertForMaskedLM":
        return transformers.BertForMaskedLM(transformers.BertConfig(**shape))
    if name == "T5ForConditionalGeneration":
        config = transformers.T5Config(
            d_model=8, d_ff=16, num_layers=1, num_heads=2, d_kv=4, vocab_size=32, decoder_start_token_id=0
        )
        return transformers.T5ForConditionalGeneration(config)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))


@pytest.mark.parametrize(
    ("name", "told", "form"),
    [
        ("LlamaForCausalLM", 100, (Divisor.WINDOW, True)),
        ("LlamaForCausalLM", None, (Divisor.MICRO_STEP, True)),
        ("BertForMaskedLM", None, (Divisor.MICRO_STEP, False)),
        ("T5ForConditionalGeneration", None, (Divisor.MICRO_STEP, False)),
    ],
)
def test_what_divides_a_loss_is_read_from_the_loss(name, told, form):
    model = model_of(name).eval()
    letters = torch.randint(1, 32, (3, 7), generator=torch.Generator().manual_seed(1))
    labels = letters.clone()
    labels[1, 3:] = IGNORED
    found = model(input_ids=letters, labels=labels, **({} if told is None else {"num_items_in_batch": told}))
    assert form_of(found.loss, found.logits, labels, told) == form
    assert form_of(found.loss * 1.1, found.logits, labels, told) is None


def test_weights_are_counts_of_tokens_and_never_zero():
    labels = torch.tensor([[5, 5, 5], [5, 5, IGNORED], [5, IGNORED, IGNORED]])
    weights = token_weights(labels, Divisor.WINDOW, shifted=True)
    assert weights[:2].tolist() == [2.0, 1.0]
    assert 0 < weights[2] < 1e-6
    assert token_weights(labels, Divisor.MICRO_STEP, shifted=False).tolist() == [0.5, 2 / 6, 1 / 6]


def test_a_loss_that_is_no_token_mean_is_said(tmp_path):
    class PenalisedForCausalLM(transformers.LlamaForCausalLM):
        def forward(self, input_ids=None, labels=None, **kwargs):
            found = super().forward(input_ids=input_ids, labels=labels, **kwargs)
            found["loss"] = found["loss"] + 100 * found["logits"].square().mean()
            return found

    model = build(How())
    callback = GradscopeCallback()
    trainer(How(), tmp_path, [callback], model=PenalisedForCausalLM(model.config)).train()
    assert NOT_TOKENS in callback.scope.report().warnings


def test_a_classifier_needs_no_weights(tmp_path):
    config = transformers.BertConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=len(LETTERS),
        num_labels=2,
    )
    data = [{"input_ids": row["input_ids"], "labels": int(row["input_ids"].sum() % 2)} for row in rows()]
    callback = GradscopeCallback()
    trainer(How(k=4), tmp_path, [callback], model=transformers.BertForSequenceClassification(config), data=data).train()
    report = callback.scope.report()
    assert (report.windows, report.micro_steps, report.samples) == (3, 9, len(data))
    assert NOT_TOKENS not in report.warnings
    assert {coverage.status for coverage in report.coverage.values()} == {"exact"}


# -- the life of a training ----------------------------------------------------------------------------------------------------


def test_nothing_stays_behind(tmp_path):
    callback = GradscopeCallback()
    runs = trainer(How(), tmp_path, [callback])
    runs.train()
    assert hooks_on(runs.model) == []
    assert "_run_epoch" not in vars(runs)
    runs.train()
    assert callback.scope.report().windows == 9


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stays_behind_where_training_raises_or_is_interrupted(error, tmp_path):
    callback = GradscopeCallback()

    class Raises(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise error("in the middle")

    runs = trainer(How(), tmp_path, [callback, Raises()])
    with pytest.raises(error, match="in the middle"):
        runs.train()
    assert hooks_on(runs.model) == []
    assert "_run_epoch" not in vars(runs)
    assert callback.scope.report().windows == 4


def test_a_training_that_is_stopped_early_logs_what_is_left(tmp_path):
    class Stops(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    runs = trainer(How(), tmp_path, [GradscopeCallback(log_every=3), Stops()])
    runs.train()
    assert [row["step"] for row in runs.state.log_history if "gradscope/window" in row] == [3, 5]


def test_figures_are_in_the_event_file_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = GradscopeCallback(log_every=4)
    trainer(How(), tmp_path, [callback], report_to=["tensorboard"]).train()
    folder = next(tmp_path.rglob("events.out.*")).parent
    events = EventAccumulator(str(folder)).Reload()
    # What passes through the trainer's log gets its prefix.
    found = events.Scalars("train/gradscope/grad_norm/total")
    assert [event.step for event in found] == [4, 8, 9]
    assert found[-1].value == pytest.approx(callback.scope.report().total.grad_norm, rel=1e-6)
    assert len(events.Scalars("train/loss")) == 9
