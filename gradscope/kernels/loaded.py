"""The compiled module, where there is one."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

#: Set to 0, figures come from torch's operators alone.
VARIABLE = "GRADSCOPE_KERNELS"


def _load() -> tuple[Any, str]:
    """The module and nothing, or nothing and why. It finds the threads of the OpenMP that torch has loaded; it brings none."""
    if os.environ.get(VARIABLE) == "0":
        return None, f"switched off by {VARIABLE}=0"
    try:
        from gradscope.kernels import _kernels  # type: ignore[attr-defined]
    except ImportError as error:
        return (
            None,
            f"not built, which takes GCC and the headers of Python on x86-64 when gradscope is installed ({error})",
        )
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    _kernels.meet(Tensor, torch.float32, torch.float64, torch.strided, wrapped)
    if not _kernels.widest():
        return None, "this processor has neither AVX-512 nor AVX2"
    return _kernels, ""


_compiled, ABSENT = _load()

#: Bytes of a vector: 64 (AVX-512), 32 (AVX2) or 0 (no kernels, and ABSENT says why).
VECTOR: int = _compiled.widest() if _compiled is not None else 0


#: The same by name.
INSTRUCTIONS = {64: "AVX-512", 32: "AVX2", 0: ""}[VECTOR]


def compiled() -> Any:
    """The module."""
    if _compiled is None:
        raise RuntimeError(f"gradscope's kernels cannot be used: {ABSENT}")
    return _compiled


def available() -> bool:
    """Whether there are kernels, whatever they may serve."""
    return VECTOR > 0


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels can read these: dense tensors of one dtype, float32 or float64, on a CPU; none empty."""
    return VECTOR > 0 and _compiled.serves(*tensors)


def serves_lines(*tensors: Tensor) -> bool:
    """Whether the kernels can read these, and each is contiguous."""
    return VECTOR > 0 and _compiled.serves_lines(*tensors)


def check(fits: bool, kernel: str, *shapes: torch.Size) -> None:
    """Refuse what a kernel would read or write beyond its memory.

    Raises:
        ValueError: what was given does not fit together.
    """
    if not fits:
        sizes = " and ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"the kernel for {kernel} was given tensors that do not fit together, of shapes {sizes}")


def check_chosen(chosen: Tensor | None, count: int, samples: int, kernel: str) -> None:
    """Refuse samples that are not as many as was said; what they are the kernel looks at.

    Raises:
        ValueError: they are not.
    """
    if chosen is None:
        check(count == samples, kernel, torch.Size((count,)), torch.Size((samples,)))
    else:
        fits = chosen.dtype is torch.int64 and chosen.is_cpu and chosen.is_contiguous() and chosen.shape == (count,)
        check(fits, kernel, chosen.shape, torch.Size((count,)))


def addresses(directions: tuple[Tensor, Tensor], sizes: tuple[int, int], like: Tensor) -> tuple[int, int]:
    """Where two directions lie, of these sizes and contiguous."""
    for direction, size in zip(directions, sizes, strict=True):
        fits = direction.numel() == size and direction.is_contiguous() and direction.dtype == like.dtype
        # A model that was moved since leaves its directions where it was.
        fits = fits and direction.is_cpu
        check(fits, f"directions of {size} numbers", direction.shape)
    return directions[0].data_ptr(), directions[1].data_ptr()


def tile(dtype: torch.dtype, vector: int) -> tuple[int, int]:
    """Columns and rows of a tile, which stays in registers."""
    return 2 * vector // dtype.itemsize, vector // 8


def width_of(dtype: torch.dtype) -> int:
    """Columns of a tile in the vectors that are used."""
    return tile(dtype, VECTOR)[0]


def up(size: int, step: int) -> int:
    """The next multiple."""
    return -(-size // step) * step
