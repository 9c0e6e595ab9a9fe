"""What assert_accumulates promises besides the right cause."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscope.checks import AccumulationFailure, assert_accumulates, diagnose
from gradscope.checks.splits import default_splits
from gradscope.errors import InvalidArgumentError
from tests.checks.bugs import BUGS
from tests.checks.worlds import World


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.fixture
def batch():
    return torch.randn(13, 3), torch.randn(13, 2)


def right_step(optimizer=None, extra=lambda: None):
    def step(model, micro_batches):
        n = sum(len(x) for x, _ in micro_batches)
        for b in micro_batches:
            (mse(model, b) * len(b[0]) / n).backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        extra()

    return step


def test_everything_is_as_before_afterwards(batch):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    right_step(optimizer)(model, [batch])
    model[0].weight.grad = torch.full((4, 3), 7.0)
    objects = [id(p) for p in model.parameters()], model[0].weight.grad.data_ptr(), model[0].weight.data_ptr()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict(), scaler.state_dict()))
    modes, random = [m.training for m in model.modules()], torch.get_rng_state()

    def step(model, micro_batches):
        model.train()
        torch.rand(3)
        for b in micro_batches:
            scaler.scale(mse(model, b)).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()

    with pytest.raises(AccumulationFailure):
        assert_accumulates(step, model, mse, batch)
    after = (model.state_dict(), optimizer.state_dict(), scheduler.state_dict(), scaler.state_dict())
    for was, now in zip(before, after, strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=0)
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert objects == (
        [id(p) for p in model.parameters()],
        model[0].weight.grad.data_ptr(),
        model[0].weight.data_ptr(),
    )
    assert model[0].weight.grad.eq(7).all()
    assert model[0].bias.grad is None
    assert "train" not in vars(model)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_no_hook_is_left(batch):
    model = nn.Linear(3, 2)
    assert_accumulates(right_step(), model, mse, batch)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model.weight._backward_hooks


def test_splits_have_distinct_sizes_and_no_power_of_two():
    for samples in range(10, 80):
        for sizes in default_splits(samples, least=2):
            total = sum(sizes)
            assert total <= samples
            assert total & (total - 1) or len(set(sizes)) == 1
            assert len(set(sizes)) in (1, len(sizes))
            assert min(sizes) >= 2
        assert {len(s) for s in default_splits(samples)} == {1, 2, 3, 4}


@pytest.mark.parametrize("samples", range(1, 10))
def test_few_samples_are_enough_for_a_verdict(samples):
    batch = torch.randn(samples, 3), torch.randn(samples, 2)
    assert_accumulates(right_step(), nn.Linear(3, 2), mse, batch)


def test_the_users_splits_are_tried_and_no_others(batch):
    seen = set()

    def step(model, micro_batches):
        seen.add(tuple(len(x) for x, _ in micro_batches))
        right_step()(model, micro_batches)

    assert_accumulates(step, nn.Linear(3, 2), mse, batch, split=[[4, 5], [2, 3, 1]])
    assert seen == {(13,), (4, 5), (2, 3, 1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": [9, 9]}, "needs 18 samples, but the batch has 13"),
        ({"split": [0, 3]}, "positive"),
        ({"windows": 0}, "at least one window"),
    ],
)
def test_bad_arguments_are_refused(batch, arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        assert_accumulates(right_step(), nn.Linear(3, 2), mse, batch, **arguments)


def test_a_step_that_trains_a_copy_is_refused(batch):
    other = nn.Linear(3, 2)
    with pytest.raises(InvalidArgumentError, match="not into a copy"):
        assert_accumulates(lambda m, b: right_step()(other, b), nn.Linear(3, 2), mse, batch)


def test_a_loss_that_is_no_number_is_refused(batch):
    with pytest.raises(InvalidArgumentError, match="one number"):
        assert_accumulates(right_step(), nn.Linear(3, 2), lambda m, b: m(b[0]), batch)


def test_a_loss_that_is_not_finite_is_refused(batch):
    with pytest.raises(InvalidArgumentError, match="not finite"):
        assert_accumulates(right_step(), nn.Linear(3, 2), lambda m, b: mse(m, b) / 0, batch)


def test_the_users_exception_comes_through_and_state_is_put_back(batch):
    model = nn.Linear(3, 2)
    before = model.weight.clone()

    def step(model, micro_batches):
        with torch.no_grad():
            model.weight.zero_()
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        assert_accumulates(step, model, mse, batch)
    assert torch.equal(model.weight, before)


def test_ignorance_is_admitted(batch):
    def step(model, micro_batches):
        right_step()(model, micro_batches)
        for b in micro_batches[:1]:
            (model(b[0]) ** 4).sum().backward()

    d = diagnose(step, nn.Linear(3, 2), mse, batch)
    assert d.cause == "unknown"
    assert d.parameters[0].error > 1e-3


def test_two_causes_with_one_signature_are_both_said(batch):
    def step(model, micro_batches):
        for b in micro_batches:
            (mse(model, b) / 9).backward()

    d = diagnose(step, nn.Linear(3, 2), mse, batch, split=[4, 4, 4])
    assert d.cause == "divided twice"
    assert "averaged over ranks twice" in d.also


@pytest.mark.parametrize("cause", ["missing zero_grad", "never unscaled", "regularizer per micro-step"])
def test_a_loop_divided_by_k_has_its_worse_fault_named_first(batch, cause):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def penalty(model):
        return model.weight.square().sum() if cause == "regularizer per micro-step" else 0.0

    def step(model, micro_batches):
        for b in micro_batches:
            loss = mse(model, b) / len(micro_batches) * (512 if cause == "never unscaled" else 1)
            (loss + penalty(model)).backward()
        optimizer.step()
        if cause != "missing zero_grad":
            optimizer.zero_grad()

    d = diagnose(step, model, lambda m, b: mse(m, b) + penalty(m), batch)
    assert d.cause == cause


@pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "optimizer"])
def test_an_optimizer_that_steps_inside_backward_is_named(batch, by_hand):
    model = nn.Linear(3, 2)
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def apply(p):
        if by_hand:
            p.data -= 0.1 * p.grad
            p.grad = None
        else:
            optimizers[p].step()
            optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(apply)
    d = diagnose(right_step(), model, mse, batch)
    assert d.cause == "parameters changed inside window"
    assert "inside backward" in d.evidence[0]


def test_complex_sparse_and_compiled_models_are_judged(batch):
    def step(loss):
        def run(model, micro_batches):
            n = sum(len(b[0]) for b in micro_batches)
            for b in micro_batches:
                (loss(model, b) * len(b[0]) / n).backward()

        return run

    def complex_loss(model, batch):
        return model(batch[0]).abs().square().mean()

    assert_accumulates(
        step(complex_loss), nn.Linear(3, 2, dtype=torch.complex64), complex_loss, (batch[0].to(torch.complex64),)
    )

    def token_loss(model, batch):
        return model(batch[0]).square().sum(-1).mean()

    assert_accumulates(step(token_loss), nn.Embedding(9, 3, sparse=True), token_loss, (torch.randint(9, (13, 4)),))
    assert_accumulates(step(mse), torch.compile(nn.Linear(3, 2)), mse, batch)


def test_only_the_parameters_that_are_optimized_are_judged(batch):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    assert_accumulates(right_step(optimizer), model, mse, batch)


def test_a_float32_only_step_is_judged_in_float32(batch):
    def make(divide):
        def step(model, micro_batches):
            n = sum(len(x) for x, _ in micro_batches)
            for x, y in micro_batches:
                assert model.weight.dtype == torch.float32
                (F.mse_loss(model(x), y) * (len(x) / n if divide else 1)).backward()

        return step

    assert_accumulates(make(True), nn.Linear(3, 2), mse, batch)
    assert diagnose(make(False), nn.Linear(3, 2), mse, batch).cause == "not divided"


def test_rtol_decides_what_passes(batch):
    def step(model, micro_batches):
        n = sum(len(x) for x, _ in micro_batches)
        for b in micro_batches:
            (mse(model, b) * len(b[0]) / n * (1 + 1e-3)).backward()

    assert not diagnose(step, nn.Linear(3, 2), mse, batch, windows=1).right
    assert_accumulates(step, nn.Linear(3, 2), mse, batch, rtol=1e-2)


def test_nested_batches_are_split_along_the_samples():
    world = World(kind="tokens")
    nested = {"inner": [world.batch], "note": "kept"}

    def loss(model, batch):
        return world.mean(model, batch["inner"][0])

    def step(model, micro_batches):
        total = world.total([b["inner"][0] for b in micro_batches])
        for b in micro_batches:
            assert b["note"] == "kept"
            (world.sum(model, b["inner"][0]) / total).backward()

    assert_accumulates(step, world.model, loss, nested)


MESSAGE = """\
The gradient that the training step accumulated is not the gradient of the loss over the whole minibatch:
it points the right way, but is 3 times too large.

Likely cause: not divided
  each micro-batch's loss counts 1 in the sum: it was added up without being divided.

What to change:
  Divide each micro-batch's loss by the number of micro-batches before backward():
      loss = loss_fn(model, micro_batch) / len(micro_batches)
      loss.backward()
  Where micro-batches differ in size, weigh each by its share instead: * samples_in_it / samples_in_window. Where the loss
  is a sum, divide it by the number of samples (or tokens) in the whole window.

Window 1, 24 samples in 3 micro-batches (counts: 1 is right, 0 is lost):
  micro-batch  samples  counts
  1            0-7      3
  2            8-15     3
  3            16-23    3

  parameter      |got|    |right|  got/right   cosine
  0.weight           3          1          3   1.0000
"""


def test_the_message_of_the_most_common_bug_says_what_to_change():
    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x * self.weight

    model, batch = nn.Sequential(Times()), torch.ones(26, 1)

    def mean(model, batch):
        return model(batch).mean()

    def step(model, micro_batches):
        for b in micro_batches:
            mean(model, b).backward()

    with pytest.raises(AccumulationFailure) as failure:
        assert_accumulates(step, model, mean, batch)
    assert str(failure.value) + "\n" == MESSAGE


def test_every_planted_bug_of_the_table_is_listed_with_its_own_remedy():
    from gradscope.checks.diagnosis import CAUSES
    from gradscope.checks.remedies import REMEDIES

    assert set(REMEDIES) == set(CAUSES)
    assert len(BUGS) >= 25
