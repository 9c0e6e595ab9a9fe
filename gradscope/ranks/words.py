"""What ranks tell each other in words, in letters of one length."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

#: Bytes of a letter; what does not fit is left out.
LENGTH = 2048


def as_letter(words: Mapping[str, str]) -> Tensor:
    """As many words as fit, ``[LENGTH]`` bytes."""
    fitting: dict[str, str] = {}
    text = b"{}"
    for key, value in words.items():
        longer = json.dumps({**fitting, key: value[:300]}).encode()
        if len(longer) <= LENGTH:
            fitting[key], text = value[:300], longer
    return torch.tensor(list(text.ljust(LENGTH)), dtype=torch.uint8, device="cpu")


def from_letter(letter: Tensor) -> dict[str, str]:
    """The words again."""
    found: dict[str, str] = json.loads(bytes(letter.tolist()).decode())
    return found
