"""What other checks say of the same bugs, side by side in one test run; writes docs/comparison-of-checks.md.

    pip install pytest-torch==1.1.1 opacus==1.6.0 opt_einsum
    python benchmarks/checks_comparison.py

Both need no more than that; neither is needed by gradscope.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

SAMPLES, K = 24, 4
TABLE = Path(__file__).parents[1] / "docs" / "comparison-of-checks.md"
RESULTS: dict[tuple[str, str], str] = {}


# -- the same small training for everyone ----------------------------------------------------------------------------


class Case:
    """A loop as one function per micro-batch: ``micro(i, k, batch)``, called for each micro-batch of each window."""

    def __init__(self, scale=1.0, dtype=torch.float32, lr=1e-3):
        torch.manual_seed(0)
        self.scale, self.dtype, self.total = scale, dtype, 0
        self.model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.data = [(torch.randn(SAMPLES, 5).to(dtype), torch.randn(SAMPLES, 2).to(dtype)) for _ in range(2)]

    def loss(self, model, batch):
        return self.scale * F.mse_loss(model(batch[0]), batch[1])

    def backward(self, i, k, batch):
        (self.loss(self.model, batch) * self.share(k, batch)).backward()

    def share(self, k, batch):
        return len(batch[0]) / (self.total or k * len(batch[0]))

    def micro(self, i, k, batch):
        self.backward(i, k, batch)
        if (i + 1) % k == 0:
            self.apply(k)

    def apply(self, k):
        self.optimizer.step()
        self.optimizer.zero_grad()


class NotDivided(Case):
    def share(self, k, batch):
        return 1.0


class DividedTwice(Case):
    def share(self, k, batch):
        return 1 / k**2


class MissingZeroGrad(Case):
    def apply(self, k):
        self.optimizer.step()


class ZeroGradInside(Case):
    def backward(self, i, k, batch):
        self.optimizer.zero_grad()
        super().backward(i, k, batch)


class SteppedEarly(Case):
    def micro(self, i, k, batch):
        self.backward(i, k, batch)
        if i % k == 0:
            self.apply(k)


class ClippedInside(Case):
    def backward(self, i, k, batch):
        super().backward(i, k, batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.15 * self.scale)


class ConstantDivisor(Case):
    def share(self, k, batch):
        return 1 / 3


class LastDropped(Case):
    def backward(self, i, k, batch):
        if (i + 1) % k or k == 1:
            super().backward(i, k, batch)


class NeverUnscaled(Case):
    def share(self, k, batch):
        return 1024 * super().share(k, batch)


class ClippedBeforeUnscaling(Case):
    def share(self, k, batch):
        return 1024 * super().share(k, batch)

    def apply(self, k):
        nn.utils.clip_grad_norm_(self.model.parameters(), self.scale)
        for p in self.model.parameters():
            p.grad /= 1024
        super().apply(k)


class RegularizerPerStep(Case):
    def penalty(self, model):
        return 0.05 * self.scale * sum(p.square().sum() for p in model.parameters())

    def loss(self, model, batch):
        return super().loss(model, batch) + self.penalty(model)

    def backward(self, i, k, batch):
        (super().loss(self.model, batch) * self.share(k, batch) + self.penalty(self.model)).backward()


class SchedulerPerStep(Case):
    def __init__(self, **options):
        super().__init__(**options)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.5)

    def backward(self, i, k, batch):
        super().backward(i, k, batch)
        self.scheduler.step()


class MeanOfMeans(Case):
    """Right on even splits; this is what uneven ones show."""

    def share(self, k, batch):
        return 1 / k


BUGS = {
    "loss not divided": NotDivided,
    "divided twice": DividedTwice,
    "mean of means (uneven micro-batches)": MeanOfMeans,
    "constant divisor": ConstantDivisor,
    "zero_grad in the micro loop": ZeroGradInside,
    "missing zero_grad": MissingZeroGrad,
    "step at i % k == 0": SteppedEarly,
    "L2 penalty per micro-step": RegularizerPerStep,
    "last micro-batch dropped": LastDropped,
    "clipped per micro-step": ClippedInside,
    "clipped before unscaling": ClippedBeforeUnscaling,
    "never unscaled": NeverUnscaled,
    "scheduler per micro-step": SchedulerPerStep,
}
CAUSES = {
    "loss not divided": "not divided",
    "mean of means (uneven micro-batches)": "mean of means",
    "constant divisor": "short window",
    "zero_grad in the micro loop": "zero_grad inside window",
    "step at i % k == 0": "stepped too early",
    "L2 penalty per micro-step": "regularizer per micro-step",
    "last micro-batch dropped": "micro-batch dropped",
}


# -- the checks ------------------------------------------------------------------------------------------------------


def by_gradscope(case, name):
    from gradscope.checks import assert_accumulates

    def step(model, micro_batches):
        case.total = sum(len(x) for x, _ in micro_batches)
        for i, batch in enumerate(micro_batches):
            case.micro(i, len(micro_batches), batch)

    data = tuple(torch.cat(parts) for parts in zip(*case.data, strict=True))
    assert_accumulates(step, case.model, case.loss, data)


def by_pytest_torch(case, name):
    from pytest_torch.training_loop import TrainingSetup, assert_accumulation_equivalent

    made = []

    def make_setup():
        made.append(type(case)(scale=case.scale, dtype=case.dtype))
        return TrainingSetup(made[-1].model, made[-1].optimizer)

    def make_step(k):
        def step(setup, micro):
            made[-1].micro(setup.step_index % k, k, micro)

        return step

    assert_accumulation_equivalent(make_setup, case.data, make_step, accumulation_steps=K)


def by_assert_close(case, name):
    """The test that people write: accumulate four even micro-batches once, compare with the whole batch."""
    expected = torch.autograd.grad(case.loss(case.model, case.data[0]), case.model.parameters())
    for i in range(K):
        case.backward(i, K, tuple(t[i * 6 : (i + 1) * 6] for t in case.data[0]))
    torch.testing.assert_close([p.grad for p in case.model.parameters()], list(expected))


def by_gradcheck(case, name):
    """It sees a function, so of a loop no more than the loss."""
    model = case.model.double()
    names, values = zip(*model.named_parameters(), strict=True)
    batch = tuple(t.double() for t in case.data[0])

    def function(*parameters):
        def call(x):
            return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))

        return F.mse_loss(call(batch[0]), batch[1]) * case.scale

    torch.autograd.gradcheck(function, tuple(v.detach().requires_grad_() for v in values))


def by_opacus(case, name):
    from opacus.utils.per_sample_gradients_utils import check_per_sample_gradients_are_correct as check

    assert check(case.data[0][0].float(), case.model.float())


CHECKS = {
    "gradscope": by_gradscope,
    "pytest-torch": by_pytest_torch,
    "assert_close": by_assert_close,
    "gradcheck": by_gradcheck,
    "Opacus": by_opacus,
}


def verdict(check, case, name):
    try:
        CHECKS[check](case, name)
    except Exception as failure:  # a check may fail in any way: what it says is the result
        return failure
    return None


def said(check, failure, name):
    """Whether the right cause is named, in a word, else what is said."""
    text = str(failure)
    if check == "gradscope":
        cause = failure.diagnosis.cause
        return "**named**" if cause == CAUSES.get(name, name) else f"caught: “{cause}”"
    marks = {
        "loss not divided": "isn't divided", "divided twice": "divided by accumulation_steps twice",
        "missing zero_grad": "zero_grad() isn't", "step at i % k == 0": "premature optimizer step",
        "scheduler per micro-step": "scheduler",
    }  # fmt: skip
    if check == "pytest-torch":
        if name in marks and marks[name] in text:
            return "**named**"
        likely = text.split("Likely cause:")[1].strip().splitlines()[0] if "Likely cause:" in text else "values differ"
        return f"caught: “{likely.strip(' -')[:60]}”"
    return "caught: values differ"


@pytest.mark.parametrize("scale", [1.0, 1e-7], ids=["1", "1e-7"])
@pytest.mark.parametrize("name", BUGS)
@pytest.mark.parametrize("check", CHECKS)
def test_bug(check, name, scale):
    failure = verdict(check, BUGS[name](scale=scale), name)
    unseen = "sees no loop" if check in ("gradcheck", "Opacus") else "missed"
    RESULTS[check, f"{name}|{scale:g}"] = unseen if failure is None else said(check, failure, name)


@pytest.mark.parametrize(
    "options", [{}, {"scale": 1e-7}, {"scale": 1e6}, {"dtype": torch.bfloat16}], ids=["1", "1e-7", "1e6", "bf16"]
)
@pytest.mark.parametrize("check", CHECKS)
def test_right_loop(check, options):
    name = f"right loop|{options.get('scale', 1):g}{', bf16' if 'dtype' in options else ''}"
    failure = verdict(check, Case(**options), name)
    RESULTS[check, name] = "passes" if failure is None else f"**false alarm**: {type(failure).__name__}"


# -- beyond loops ----------------------------------------------------------------------------------------------------


class HalfSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class Square(nn.Module):
    def forward(self, x):
        return HalfSquare.apply(x)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def other_models():
    torch.manual_seed(0)
    return {
        "wrong backward of a custom function": nn.Sequential(nn.Linear(5, 6), Square(), nn.Linear(6, 2)),
        "samples leak (x - x.mean(0))": nn.Sequential(nn.Linear(5, 6), Centred(), nn.Linear(6, 2)),
    }


@pytest.mark.parametrize("name", other_models())
@pytest.mark.parametrize("check", CHECKS)
def test_model(check, name):
    from gradscope import checks

    case = Case()
    case.model = other_models()[name]
    RESULTS[check, f"{name}|1"] = "not its question"
    if check == "gradscope":
        if "custom" in name:
            with pytest.raises(AssertionError, match="HalfSquare"):
                checks.assert_gradients(case.model, case.loss, case.data[0])
        else:
            with pytest.raises(AssertionError, match="Centred"):
                checks.assert_no_leakage(case.model, case.data[0][0])
        RESULTS[check, f"{name}|1"] = "**named**"
    elif check in ("gradcheck", "Opacus"):
        failure = verdict(check, case, name)
        RESULTS[check, f"{name}|1"] = "missed" if failure is None else f"caught: {type(failure).__name__}"


# -- the table -------------------------------------------------------------------------------------------------------


def write_table() -> None:
    """The results as a page."""
    rows = list(dict.fromkeys(row for _, row in RESULTS))
    versions = ", ".join(f"{d} {importlib.metadata.version(d)}" for d in ("torch", "pytest-torch", "opacus"))
    lines = [
        "# What other checks see",
        "",
        "Made by `python benchmarks/checks_comparison.py` in one pytest run with both plugins loaded",
        f"({versions}).",
        "",
        "Each check is used as its documentation shows, at its default tolerances. “named”: fails and says the right cause;",
        "“missed”: passes a bug. `gradcheck` and Opacus' checker look at a model, not at a loop. The `assert_close` column is",
        "the test that people write by hand: four even micro-batches of one window against the whole batch.",
        "",
        f"| bug | gradient scale | {' | '.join(CHECKS)} |",
        f"|---|---|{'---|' * len(CHECKS)}",
    ]
    for row in rows:
        name, scale = row.split("|")
        lines.append(f"| {name} | {scale} | " + " | ".join(RESULTS.get((check, row), "") for check in CHECKS) + " |")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def _table_at_the_end():
    torch.set_num_threads(1)
    yield
    write_table()


if __name__ == "__main__":
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", __file__]))
