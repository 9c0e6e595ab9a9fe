"""transformers' GPT-2 from its own configuration (tied head, ``Conv1D``, positions without a batch); dropout off."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Logits(nn.Module):
    """GPT-2 whose output is the tensor of scores."""

    def __init__(self, length: int, width: int, depth: int) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        config = GPT2Config(
            n_positions=max(length, 8), n_embd=width, n_layer=depth, n_head=width // 64 or 2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        )  # fmt: skip
        self.gpt2 = GPT2LMHeadModel(config)
        self.vocabulary = config.vocab_size

    def forward(self, ids: Tensor) -> Tensor:
        return self.gpt2(input_ids=ids).logits


def gpt2(n: int, length: int, width: int, depth: int) -> tuple[nn.Module, tuple[Tensor], Tensor]:
    """A batch of random texts."""
    model = Logits(length, width, depth)
    ids = torch.randint(model.vocabulary, (n, length + 1))
    return model, (ids[:, :-1].contiguous(),), ids[:, 1:].contiguous()
