"""The models; an open set: one function in a file, one line here."""

from __future__ import annotations

import torch

from benchmarks.speed.models.bert import bert
from benchmarks.speed.models.convnets import c3d3, depthwise
from benchmarks.speed.models.gpt import gpt
from benchmarks.speed.models.gpt2 import gpt2
from benchmarks.speed.models.lstm import lstm
from benchmarks.speed.models.mlp import mlp
from benchmarks.speed.models.resnet import resnet18, resnet50
from benchmarks.speed.problem import Builder

MODELS = {
    "mlp": Builder(
        "MLP 784-512-512-10, n 128", mlp, {"n": 128, "width": 512, "depth": 2}, {"n": 8, "width": 32}, 0.003
    ),
    "3c3d": Builder("3C3D, n 64", c3d3, {"n": 64, "size": 32, "width": 32}, {"n": 4, "width": 4}, 0.058),
    "resnet": Builder(
        "ResNet-18 GroupNorm, n 16", resnet18, {"n": 16, "size": 32, "width": 64}, {"n": 3, "width": 8}, 0.3
    ),
    "gpt": Builder(
        "GPT 4 × 256, T 128, n 16",
        gpt,
        {"n": 16, "length": 128, "width": 256, "depth": 4, "heads": 4},
        {"n": 4, "length": 12, "width": 16, "depth": 2},
        0.33,
    ),
    "wide": Builder(
        "GPT 2 × 512, T 256, n 4",
        gpt,
        {"n": 4, "length": 256, "width": 512, "depth": 2, "heads": 8},
        {"n": 3, "length": 12, "width": 16},
        0.3,
    ),
    "depthwise": Builder(
        "depthwise ConvNet, n 32", depthwise, {"n": 32, "size": 32, "width": 64, "depth": 4}, {"n": 4, "width": 8}, 0.15
    ),
    "lstm": Builder(
        "LSTM 2 × 128, T 32, n 32", lstm, {"n": 32, "length": 32, "width": 128}, {"n": 4, "length": 6, "width": 8}, 0.07
    ),
    "bert": Builder(
        "BERT 4 × 256, T 64, n 16",
        bert,
        {"n": 16, "length": 64, "width": 256, "depth": 4},
        {"n": 4, "length": 8, "width": 16, "depth": 2},
        0.2,
        needs=("transformers",),
    ),
}

#: What ``bench-gpu`` measures besides.
LARGE = {
    "gpt2": Builder(
        "GPT-2 124M, T 512, n 8, bf16 autocast",
        gpt2,
        {"n": 8, "length": 512, "width": 768, "depth": 12},
        {"n": 3, "length": 8, "width": 24, "depth": 2},
        8.0,
        autocast=torch.bfloat16,
        needs=("transformers",),
    ),
    "resnet50": Builder(
        "ResNet-50 GroupNorm, n 64, 224 × 224",
        resnet50,
        {"n": 64, "size": 224, "width": 64},
        {"n": 3, "size": 64, "width": 8},
        30.0,
        chunk=8,
    ),
}
