"""Layers and shapes of Opacus' grad-sample tests, drawn at random from the same ranges.

``GRADSCOPE_PEER_DRAWS`` says how many draws of each; batches of no samples, which Opacus tries as well, have nothing to measure.
"""

import os
import random

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from peers.compared import compare

DRAWS = int(os.environ.get("GRADSCOPE_PEER_DRAWS", "6"))


def drawn(**ranges):
    """The test over random draws: a pair is a range of integers, a list is chosen from."""

    def settings(seed):
        generator = random.Random(seed)
        pick = {k: generator.choice(v) if isinstance(v, list) else generator.randint(*v) for k, v in ranges.items()}
        return pytest.param(pick, id=" ".join(f"{k}={v}" for k, v in pick.items()))

    return pytest.mark.parametrize("s", [settings(seed) for seed in range(DRAWS)])


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def convolution(kind, s, *size):
    out = s["C"] * 2 if s["wider"] else max(1, s["C"] // 2)
    groups = max(g for g in range(1, s["groups"] + 1) if s["C"] % g == 0 and out % g == 0)
    stride = 1 if s["padding"] == "same" else s["stride"]
    layer = kind(s["C"], out, s["kernel"], stride, s["padding"], s["dilation"], groups)
    compare(layer, (randn(s["N"], s["C"], *size),))


WIDTHS = {"N": (1, 4), "C": [1, 3, 32], "wider": [True, False]}


@drawn(
    **WIDTHS,
    W=(6, 10),
    kernel=(2, 3),
    stride=(1, 2),
    padding=[0, 1, 2, "same", "valid"],
    dilation=(1, 2),
    groups=(1, 12),
)
def test_conv1d(s):
    convolution(nn.Conv1d, s, s["W"])


@drawn(
    **WIDTHS, H=(11, 17), W=(11, 17), kernel=(2, 4), stride=(1, 2), padding=[0, 2, "same", "valid"], dilation=(1, 3),
    groups=(1, 16),
)  # fmt: skip
def test_conv2d(s):
    convolution(nn.Conv2d, s, s["H"], s["W"])


@drawn(
    **WIDTHS, D=(3, 6), H=(6, 10), W=(6, 10), kernel=[2, 3, (1, 2, 3)], stride=[1, 2, (1, 2, 3)],
    padding=[0, 2, (1, 2, 3), "same", "valid"], dilation=[1, (1, 2, 2)], groups=(1, 16),
)  # fmt: skip
def test_conv3d(s):
    if s["D"] < 5 and s["padding"] in (0, "valid"):
        s = {**s, "dilation": 1, "D": max(s["D"], 3)}
    convolution(nn.Conv3d, s, s["D"], s["H"], s["W"])


@drawn(N=(1, 4), Z=(1, 4), H=(1, 3), W=(10, 17), dim=(2, 4), bias=[True, False], batch_first=[True, False])
def test_linear(s):
    shape = [s["N"], *[s["Z"], s["H"]][: s["dim"] - 2], s["W"]]
    batch_dim = 0 if s["batch_first"] or len(shape) == 2 else 1
    x = randn(*shape)
    compare(nn.Linear(s["W"], s["W"] + 2, bias=s["bias"]), (x.transpose(0, batch_dim),), batch_dim=batch_dim)


@drawn(N=(1, 4), T=(1, 5), Q=(1, 4), R=(1, 2), V=(2, 32), D=(10, 17), dim=(1, 4), batch_first=[True, False])
def test_embedding(s):
    shape = [s["N"], s["T"], s["Q"], s["R"]][: s["dim"]]
    batch_dim = 0 if s["batch_first"] or len(shape) == 1 else 1
    ids = torch.randint(s["V"], shape).transpose(0, batch_dim)
    compare(nn.Embedding(s["V"], s["D"]), (ids,), batch_dim=batch_dim)


@drawn(N=(4, 8), size=(3, 7), V=(10, 32), D=(10, 17), mode=["sum", "mean"])
def test_embedding_bag_with_offsets(s):
    bags = [torch.randperm(s["V"])[: int(torch.randint(1, s["size"] + 1, ()))] for _ in range(s["N"])]
    offsets = torch.tensor([0] + [len(bag) for bag in bags[:-1]]).cumsum(0)

    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(s["V"], s["D"], mode=s["mode"])

        def forward(self, offsets):
            return self.bag(torch.cat(bags), offsets)

    compare(Bags(), (offsets,))


@drawn(N=(1, 4), C=(1, 8), H=(5, 10), W=(4, 8), groups=[1, 4, "C"], dims=(1, 3))
def test_group_norm(s):
    groups = s["C"] if s["groups"] == "C" else s["groups"]
    channels = s["C"] if s["C"] % groups == 0 else 4 * s["C"]
    compare(nn.GroupNorm(groups, channels), (randn(s["N"], channels, *[s["H"], s["W"], 3][: s["dims"]]),))


@drawn(N=(1, 4), C=(1, 3), W=(5, 10), dims=(1, 3))
def test_instance_norm(s):
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[s["dims"] - 1]
    compare(kind(s["C"], affine=True), (randn(s["N"], s["C"], *[s["W"], 4, 3][: s["dims"]]),))


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@drawn(N=(1, 4), Z=(1, 4), H=(1, 3), W=(5, 10), dim=(2, 4), norm=(1, 3))
def test_layer_and_rms_norm(kind, s):
    shape = [s["N"], *[s["Z"], s["H"]][: s["dim"] - 2], s["W"]]
    over = min(s["norm"], s["dim"] - 1)
    compare(kind(shape[-over:]), (randn(*shape),))


class Sequences(nn.Module):
    """A recurrent module whose packed output is unpacked again."""

    def __init__(self, rnn, lengths=None, ordered=False):
        super().__init__()
        self.rnn, self.lengths, self.ordered = rnn, lengths, ordered

    def forward(self, x):
        if self.lengths is None:
            return self.rnn(x)[0]
        samples = x if self.rnn.batch_first else x.transpose(0, 1)
        packed = pack_sequence([one[:k] for one, k in zip(samples, self.lengths, strict=True)], self.ordered)
        return pad_packed_sequence(self.rnn(packed)[0], self.rnn.batch_first, total_length=samples.shape[1])[0]


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@drawn(
    N=(1, 3), T=(1, 3), D=(4, 5), H=(8, 10), layers=[1, 2], bias=[True, False], batch_first=[True, False],
    both=[True, False], packed=[True, False], ordered=[True, False],
)  # fmt: skip
def test_rnn(kind, s):
    rnn = kind(s["D"], s["H"], s["layers"], bias=s["bias"], batch_first=s["batch_first"], bidirectional=s["both"])
    lengths = None
    if s["packed"]:
        lengths = torch.randint(1, s["T"] + 1, (s["N"],)).tolist()
        lengths = sorted(lengths, reverse=True) if s["ordered"] else lengths
    batch_dim = 0 if s["batch_first"] else 1
    x = randn(s["N"], s["T"], s["D"]).transpose(0, batch_dim)
    compare(Sequences(rnn, lengths, s["ordered"]), (x,), batch_dim=batch_dim)


class Attention(nn.Module):
    """Queries, keys and values along the last dimension of one input."""

    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(**settings)

    def forward(self, x):
        return self.attention(*x.unbind(-1))[0]


@drawn(
    N=(1, 4), T=(16, 20), D=[4], P=[1, 2], bias=[True, False], add_bias_kv=[True, False], add_zero_attn=[True, False],
    sizes=[True, False],
)  # fmt: skip
def test_multihead_attention(s):
    settings = {key: s[key] for key in ("bias", "add_bias_kv", "add_zero_attn")}
    settings |= {"kdim": s["D"], "vdim": s["D"]} if s["sizes"] else {}
    attention = Attention(embed_dim=s["D"], num_heads=s["P"], **settings)
    compare(attention, (randn(s["T"], s["N"], s["D"], 3),), batch_dim=1)


class SequenceBias(nn.Module):
    """A learnt vector behind the end of every sequence."""

    def __init__(self, size, dim):
        super().__init__()
        self.bias, self.dim = nn.Parameter(torch.randn(size)), dim

    def forward(self, x):
        shape = list(x.shape)
        shape[self.dim] = 1
        return torch.cat([x, self.bias.expand(shape)], self.dim)


@drawn(N=(1, 4), T=(10, 20), D=(4, 8), batch_first=[True, False])
def test_sequence_bias(s):
    batch_dim = 0 if s["batch_first"] else 1
    x = randn(s["N"], s["T"], s["D"]).transpose(0, batch_dim)
    compare(SequenceBias(s["D"], 1 - batch_dim), (x,), batch_dim=batch_dim)
