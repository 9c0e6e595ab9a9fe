"""What is known of one autograd node type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradscope.contributions import Contribution


@dataclass(frozen=True, slots=True)
class Operator:
    """How one type of autograd node shares its output's gradient out to one operand, row by row.

    Attributes:
        name: as the coverage shows it.
        operands: numbers of the operands that this describes.
        describe: ``(node, operand, grad, shape, dim) -> contributions`` of rows, where a row is one index along what ``rows``
            brings to the front; ``shape`` is the operand's. Reads each of ``node._saved_*`` at most
            once: a second reading fails in an activation checkpoint. Reading raises if they were modified.
        rows: ``(grad, operand, dims) -> grad`` with the dimensions that may hold samples in front; ``dims`` are those that the
            operand was broadcast along, (0,) for operators that do not broadcast.
    """

    name: str
    operands: tuple[int, ...]
    describe: Callable[[Any, int, Tensor, torch.Size, int], Contribution]
    rows: Callable[[Tensor, int, tuple[int, ...]], Tensor]
