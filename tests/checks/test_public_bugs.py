"""Bugs that shipped, rebuilt in their smallest form: each is caught under its name."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope import checks
from gradscope.checks import diagnose


class TinyLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(13, 8)
        self.head = nn.Linear(8, 13, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids, labels, num_items_in_batch=None):
        logits = self.head(self.embedding(input_ids).tanh())
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)
        return loss if num_items_in_batch is None else loss / num_items_in_batch


def padded(samples=26, length=7):
    ids = torch.randint(13, (samples, length))
    labels = ids.masked_fill(torch.arange(length) >= torch.randint(2, length + 1, (samples, 1)), -100)
    return {"input_ids": ids, "labels": labels}


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def regression():
    return nn.Linear(3, 2), (torch.randn(26, 3), torch.randn(26, 2))


def test_transformers_token_means_before_october_2024():
    """huggingface/transformers#34191: each micro-batch's mean over tokens, divided by the number of micro-batches."""
    model, batch = TinyLM(), padded()
    optimizer = torch.optim.AdamW(model.parameters())

    def training_step(model, micro_batches, fixed=False):
        items = sum((b["labels"][:, 1:] != -100).sum() for b in micro_batches)
        for b in micro_batches:
            loss = model(**b, num_items_in_batch=items) if fixed else model(**b) / len(micro_batches)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad()

    def loss_fn(model, batch):
        return model(**batch)

    d = diagnose(training_step, model, loss_fn, batch)
    assert d.cause == "mean of means"
    assert diagnose(training_step, model, loss_fn, batch, split=[4, 4, 4, 1]).cause == "mean of means"
    checks.assert_accumulates(lambda m, b: training_step(m, b, fixed=True), model, loss_fn, batch)


def test_lightnings_short_last_window():
    """Lightning-AI/pytorch-lightning#19987: every loss is divided by k; at the epoch's end the step comes after fewer."""
    model, batch = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    k = 4

    def window(model, micro_batches):
        def closure():
            optimizer.zero_grad()
            for b in micro_batches:
                (mse(model, b) / k).backward()

        optimizer.step(closure)

    assert diagnose(window, model, mse, batch).cause == "short window"

    def batches():
        return [tuple(t[i : i + 2] for t in batch) for i in range(0, 12, 2)]

    def epoch(check):
        for i, b in enumerate(check.batches(batches())):
            (mse(model, b) / k).backward()
            if (i + 1) % k == 0 or i + 1 == 6:
                optimizer.step()
                optimizer.zero_grad()

    model.zero_grad()
    with pytest.raises(checks.AccumulationFailure) as failure, checks.loop(model, optimizer, mse) as check:
        epoch(check)
    assert failure.value.diagnosis.window == 2
    assert failure.value.diagnosis.coefficients == pytest.approx((0.5, 0.5), rel=1e-4)


def test_accelerates_double_division():
    """huggingface/accelerate#3533: accelerator.backward divides by the accumulation steps, and so did its caller."""

    class Accelerator:
        def __init__(self, steps):
            self.steps = steps

        def backward(self, loss):
            (loss / self.steps).backward()

    model, batch = regression()

    def script(model, micro_batches):
        accelerator = Accelerator(len(micro_batches))
        for b in micro_batches:
            accelerator.backward(mse(model, b) / len(micro_batches))

    d = diagnose(script, model, mse, batch)
    assert d.cause == "divided twice"
    assert "Accelerate" in d.remedy


def test_clipping_before_unscaling():
    """The order that PyTorch's AMP examples warn of: the limit meets gradients that are 65536 times too large."""
    model, batch = regression()
    optimizer, scaler = torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu")

    def script(model, micro_batches):
        for b in micro_batches:
            scaler.scale(mse(model, b) / len(micro_batches)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    d = diagnose(script, model, mse, batch)
    assert d.cause == "clipped before unscaling"
    assert "65536" in d.evidence[0]


def test_zero_grad_in_the_micro_loop():
    """The plain loop with an accumulation counter pasted around it."""
    model, batch = regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def script(model, micro_batches):
        for i, b in enumerate(micro_batches):
            optimizer.zero_grad()
            loss = mse(model, b) / len(micro_batches)
            loss.backward()
            if (i + 1) % len(micro_batches) == 0:
                optimizer.step()

    assert diagnose(script, model, mse, batch).cause == "zero_grad inside window"
