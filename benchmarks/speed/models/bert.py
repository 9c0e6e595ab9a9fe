"""transformers' BERT with a classifier, from a small configuration; dropout off, so that figures can be checked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY = 512


class Classifier(nn.Module):
    """Takes positions and types as inputs, so that each has a row per sample."""

    def __init__(self, length: int, width: int, depth: int) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        super().__init__()
        self.bert = BertForSequenceClassification(
            BertConfig(
                vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=depth, num_attention_heads=4,
                intermediate_size=4 * width, max_position_embeddings=length, num_labels=10,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            )
        )  # fmt: skip

    def forward(self, ids: Tensor, places: Tensor, types: Tensor) -> Tensor:
        return self.bert(input_ids=ids, position_ids=places, token_type_ids=types).logits


def bert(n: int, length: int, width: int, depth: int) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    """A batch of random texts with classes."""
    ids, places = torch.randint(VOCABULARY, (n, length)), torch.arange(length).repeat(n, 1)
    types = (places >= length // 2).long()
    return Classifier(length, width, depth), (ids, places, types), torch.randint(10, (n,))
