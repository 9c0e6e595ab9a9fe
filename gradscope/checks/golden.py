"""Golden gradients: norms and signed projections in small JSON files, to notice when a gradient changes."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscope.checks.failures import GoldenFailure
from gradscope.errors import InvalidArgumentError
from gradscope.report import Report

SCHEMA = 1

#: Relative difference that passes, by the coarser of the two dtypes: what another machine's summation order may change.
TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "float16": 2e-2, "bfloat16": 8e-2}


@dataclass(frozen=True, slots=True)
class GoldenDifference:
    """One figure that is not the recorded one.

    Attributes:
        name: the parameter.
        figure: ``"norm"``, ``"projection 0"``, …, or ``"missing"`` / ``"new"`` for the parameter itself.
        recorded: the value in the file; NaN where there is none.
        found: the present value; NaN where there is none.
    """

    name: str
    figure: str
    recorded: float
    found: float


def check_golden(name: str, gradients: Any, folder: Path, *, update: bool, option: str = "") -> None:
    """Compare gradients with those recorded as ``folder/name.json``; with ``update`` record them instead.

    Kept are, per parameter, the norm, and for tensors two projections on fixed random signs: the norm shows a wrong size,
    the projections a wrong direction. Reports hold no tensors: of them the norms, ``tr Σ`` and ``|G|²`` are kept.

    Args:
        name: letters, digits, ``_``, ``-`` and ``.``; names the file.
        gradients: a model (its present ``.grad``), a mapping of names to tensors, or a ``Report``.
        folder: where the files lie.
        update: record instead of comparing.
        option: how a user asks for ``update``, for the message.

    Raises:
        GoldenFailure: nothing is recorded, or figures differ; ``.diagnosis`` is a tuple of ``GoldenDifference``.
        InvalidArgumentError: the name or the gradients cannot be used.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise InvalidArgumentError(f"golden({name!r}): the name becomes a file; use letters, digits, _, - and . only.")
    figures, path = _figures(gradients), folder / f"{name}.json"
    if update:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"gradscope_golden": SCHEMA, "parameters": figures}, indent=1) + "\n", encoding="utf-8"
        )
        return
    how = f"run again with {option} and look at the new file before committing it" if option else "record it first"
    if not path.exists():
        raise GoldenFailure(
            f"No golden gradients are recorded for {name!r} ({path} does not exist).\nTo create them, {how}."
        )
    wrong = _differences(_recorded(path), figures)
    if wrong:
        raise GoldenFailure(_message(name, path, wrong, len(figures), how), tuple(wrong))


def _recorded(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["gradscope_golden"] == SCHEMA:
            return dict(found["parameters"])
    except (ValueError, KeyError, TypeError) as error:
        raise GoldenFailure(f"{path} holds no golden gradients ({type(error).__name__}: {error}).") from error
    raise GoldenFailure(f"{path} was written by another version of gradscope (schema {found['gradscope_golden']}).")


def _figures(gradients: Any) -> dict[str, dict[str, Any]]:
    if isinstance(gradients, Report):
        if not gradients.parameters:
            raise InvalidArgumentError("golden(): the report holds no measured parameter; was a window closed?")
        return {
            name: {
                "dtype": "float32",
                "norm": _plain(s.grad_norm),
                "tr Σ": _plain(s.trace_cov),
                "|G|²": _plain(s.grad_sq),
            }
            for name, s in gradients.parameters.items()
        }
    if isinstance(gradients, nn.Module):
        gradients = {n: p.grad for n, p in gradients.named_parameters() if p.grad is not None}
    if not isinstance(gradients, Mapping) or not gradients:
        raise InvalidArgumentError(
            "golden() takes a model that has .grad, a mapping of names to gradient tensors, or a Report; got "
            f"{type(gradients).__name__}{'' if gradients else ' that is empty'}."
        )
    return {name: _of_tensor(name, g) for name, g in gradients.items()}


def _of_tensor(name: str, gradient: Tensor) -> dict[str, Any]:
    dense = gradient.detach().to_dense() if gradient.layout is not torch.strided else gradient.detach()
    dense = torch.view_as_real(dense) if dense.is_complex() else dense
    flat = dense.reshape(-1).cpu().to(torch.float64).numpy()
    figures: dict[str, Any] = {
        "dtype": str(dense.dtype).removeprefix("torch."),
        "norm": _plain(float(np.linalg.norm(flat))),
    }
    for k in range(2):
        figures[f"projection {k}"] = _plain(float(flat @ _signs(f"{name}/{k}", flat.size)))
    return figures


def _signs(key: str, count: int) -> Any:
    """``count`` signs that depend on the key alone: on no generator of any library's version."""
    digest = hashlib.shake_256(key.encode()).digest((count + 7) // 8)
    return np.unpackbits(np.frombuffer(digest, np.uint8))[:count] * 2.0 - 1.0


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[GoldenDifference]:
    nan, wrong = float("nan"), []
    for name in [*recorded, *(n for n in found if n not in recorded)]:
        if name not in found or name not in recorded:
            wrong.append(GoldenDifference(name, "missing" if name not in found else "new", nan, nan))
            continue
        was, now = recorded[name], found[name]
        kinds = [str(was.get("dtype")), str(now["dtype"])]
        rtol = max(TOLERANCE.get(kind, 2e-4) for kind in kinds)
        norm = max(abs(float(was.get("norm", 0))), abs(float(now["norm"])))
        for figure in (f for f in now if f != "dtype"):
            a, b = float(was.get(figure, nan)), float(now[figure])
            # A projection on n signs is as large as the norm, and so are its rounding errors. Squares err twice as much.
            size = norm if figure == "norm" or figure.startswith("projection") else 2 * max(abs(a), abs(b), norm**2)
            if not (abs(a - b) <= rtol * size or a == b or (a != a and b != b)):
                wrong.append(GoldenDifference(name, figure, a, b))
    return wrong


def _message(name: str, path: Path, wrong: list[GoldenDifference], count: int, how: str) -> str:
    names = list(dict.fromkeys(w.name for w in wrong))
    lines = [f"Golden gradients {name!r}: {len(names)} of {count} parameters differ from {path}.", ""]
    width = max(len("parameter"), *(len(w.name) for w in wrong))
    lines.append(f"  {'parameter':<{width}}  {'figure':<12}  {'recorded':>12}  {'now':>12}  {'now/rec.':>9}")
    for w in wrong[:12]:
        if w.figure in ("missing", "new"):
            lines.append(
                f"  {w.name:<{width}}  {'has no gradient now' if w.figure == 'missing' else 'was not recorded'}"
            )
        else:
            ratio = w.found / w.recorded if w.recorded else float("nan")
            lines.append(f"  {w.name:<{width}}  {w.figure:<12}  {w.recorded:>12.5g}  {w.found:>12.5g}  {ratio:>9.4g}")
    lines += [f"  and {len(wrong) - 12} more"] if len(wrong) > 12 else []
    return "\n".join([*lines, "", f"If the change is meant, {how}."])
