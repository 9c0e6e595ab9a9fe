"""Ways to cut one effective minibatch into micro-batches, chosen to tell causes apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from gradscope.errors import InvalidArgumentError

Sizes = tuple[int, ...]


def default_splits(samples: int, least: int = 1) -> list[Sizes]:
    """One micro-batch, uneven 2, 3 and 4 of distinct sizes, and an even 3, as far as the samples allow.

    Even splits hide a mean of means, and powers of two look like loss scales: neither is ever the only evidence.

    Args:
        samples: how many samples a window may use; a split may leave some out.
        least: the smallest micro-batch that the model can run.
    """
    whole = samples - 1 if samples > 3 and samples & (samples - 1) == 0 else samples
    splits: list[Sizes] = [(whole,)]
    for count in (2, 3, 4):
        sizes = _uneven(samples, count, least)
        splits += [sizes] if sizes else []
    third = samples // 3
    if third >= least:
        splits.append((third,) * 3)
    elif samples >= 2 * least:
        splits.append((samples // 2,) * 2)
    return list(dict.fromkeys(splits))


def _uneven(samples: int, count: int, least: int) -> Sizes | None:
    """``count`` distinct sizes, their sum no power of two; the largest neither first nor last where it can be."""
    for smallest in range(max(least, min(3, samples // (2 * count))), least - 1, -1):
        small = [smallest + i for i in range(count - 1)]
        largest = samples - sum(small)
        if largest > small[-1] + 1 and samples & (samples - 1) == 0:
            largest -= 1
        if largest > small[-1]:
            return (small[0], largest, *small[1:])
    return None


def given_splits(split: Sequence[int] | Sequence[Sequence[int]], samples: int) -> list[Sizes]:
    """The user's ``split=``: one list of sizes, or several.

    Raises:
        InvalidArgumentError: a size is not positive, or a split needs more samples than there are.
    """
    lists: list[Any] = [tuple(s) if isinstance(s, Sequence) else s for s in split]
    if all(isinstance(s, int) for s in lists):
        lists = [tuple(lists)]
    for sizes in lists:
        if not isinstance(sizes, tuple) or not sizes or any(not isinstance(s, int) or s < 1 for s in sizes):
            raise InvalidArgumentError(
                f"split={split!r}: a split is a list of positive micro-batch sizes, e.g. [2, 3, 4]."
            )
        if sum(sizes) > samples:
            raise InvalidArgumentError(f"split {list(sizes)} needs {sum(sizes)} samples, but the batch has {samples}.")
    return lists


def smallest_batch(model: nn.Module) -> int:
    """2 where there is a BatchNorm, which refuses a single sample in training mode (the step may switch it on); else 1."""
    norms = (nn.modules.batchnorm._BatchNorm,)
    return 2 if any(isinstance(m, norms) for m in model.modules()) else 1
