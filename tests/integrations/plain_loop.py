"""A tiny language model on real text, and the plain loop that every trainer is compared with."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope

N, T, BATCHES = 12, 8, 9
TEXT = "".join(topics[name] for name in sorted(topics))[:20_000]
LETTERS = {letter: number for number, letter in enumerate(sorted(set(TEXT)))}


def batches(count=BATCHES):
    """Batches of ``[N, T + 1]`` characters, from all over the text."""
    codes = torch.tensor([LETTERS[letter] for letter in TEXT]).unfold(0, T + 1, T + 1)
    drawn = torch.randperm(len(codes), generator=torch.Generator().manual_seed(2))[: count * N]
    return list(codes[drawn].reshape(count, N, T + 1))


class Letters(nn.Module):
    """Embedding, a block, a head."""

    def __init__(self, checkpointed=False, dropout=0.1):
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), 8)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.head = nn.Linear(8, len(LETTERS))
        self.checkpointed = checkpointed

    def forward(self, letters):
        x = self.embedding(letters).cumsum(1)
        mixed = checkpoint(self.mix, self.norm(x), use_reentrant=False) if self.checkpointed else self.mix(self.norm(x))
        return self.head(x + mixed)


def loss_of(logits, letters):
    return nn.functional.cross_entropy(logits.transpose(1, 2), letters[:, 1:])


def build(how):
    torch.manual_seed(0)
    return Letters(how.checkpointed, how.dropout)


@dataclass(frozen=True)
class How:
    """One way to train."""

    k: int = 1
    clip: float | None = None
    autocast: torch.dtype | None = None
    scaled: bool = False
    checkpointed: bool = False
    dropout: float = 0.1
    infinite_at: int | None = None
    options: dict = field(default_factory=dict)

    @property
    def scaler(self):
        return torch.amp.GradScaler("cpu", init_scale=2.0**10) if self.scaled else None

    def factor(self, batch):
        """What the loss of this batch is multiplied with."""
        return float("inf") if batch == self.infinite_at else 1.0


WAYS = {
    "k=1": How(),
    "k=4": How(k=4),
    "clipped": How(k=4, clip=0.01),
    "bf16 autocast": How(k=4, autocast=torch.bfloat16),
    "GradScaler": How(scaled=True, clip=0.01),
    "GradScaler, a step skipped": How(scaled=True, clip=0.01, infinite_at=5),
    "GradScaler, k=4, a step skipped": How(k=4, scaled=True, infinite_at=5),
    "checkpointed": How(k=4, checkpointed=True),
}


@dataclass(frozen=True)
class Run:
    """What a training left behind."""

    report: gradscope.Report
    model: nn.Module

    def parameters(self):
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}


def plain(how, *, watched=True):
    """The loop by hand: the loss is divided by k in every window, the short one too."""
    model = build(how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = how.scaler
    scope = gradscope.watch(model, optimizer, scaler=scaler, **how.options) if watched else None
    torch.manual_seed(1)
    data = batches()
    for i, letters in enumerate(data):
        with torch.autocast("cpu", how.autocast) if how.autocast else nullcontext():
            loss = loss_of(model(letters[:, :-1]), letters) * how.factor(i) / how.k
        (loss if scaler is None else scaler.scale(loss)).backward()
        if (i + 1) % how.k == 0 or i == len(data) - 1:
            step(model, optimizer, scaler, how.clip)
    if scope is None:
        return Run(None, model)
    scope.close()
    return Run(scope.report(last=100), model)


def step(model, optimizer, scaler, clip):
    if clip and scaler is not None:
        scaler.unscale_(optimizer)
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()


def assert_same_figures(found, expected, rtol=1e-6, drop=""):
    """Windows, samples and every figure; ``drop`` is what the trainer puts before names."""
    for name in ("windows", "micro_steps", "samples", "first_window", "last_window", "window_samples"):
        assert getattr(found, name) == getattr(expected, name), name
    named = {name.removeprefix(drop): stats for name, stats in found.parameters.items()}
    assert named.keys() == expected.parameters.keys()
    for name, stats in [*expected.parameters.items(), ("total", expected.total)]:
        other = found.total if name == "total" else named[name]
        for figure in ("numel", "grad_norm", "trace_cov", "grad_sq", "noise_scale", "snr", "history", "sample_norms"):
            ours, theirs = (torch.as_tensor(getattr(s, figure), dtype=torch.float64) for s in (other, stats))
            assert ours.shape == theirs.shape, (name, figure)
            close = torch.isclose(ours, theirs, rtol=rtol, atol=1e-12, equal_nan=True)
            assert close.all(), (name, figure, ours, theirs)
    statuses = {name.removeprefix(drop): coverage.status for name, coverage in found.coverage.items()}
    assert statuses == {name: coverage.status for name, coverage in expected.coverage.items()}


def assert_same_training(a, b, drop=""):
    """Bitwise."""
    theirs = b.parameters()
    for name, value in a.parameters().items():
        assert torch.equal(value, theirs[name.removeprefix(drop)]), name


def hooks_on(model):
    """What hangs on a model and its parameters."""
    found = []
    for module in model.modules():
        found += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    for parameter in model.parameters():
        found += [*(parameter._backward_hooks or {}).values()]
        found += [*(getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values()]
    return found
