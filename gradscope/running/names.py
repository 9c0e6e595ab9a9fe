"""What the watched models are called."""

from __future__ import annotations

import sys
from collections.abc import Collection

from torch.nn import Module

from gradscope.capture.model import unwrapped


def label_of(model: Module, taken: Collection[str]) -> str:
    """``netG (Generator)``: the script's own name of the model, if a global variable holds it, and its class.

    Local variables are not looked at: reading another frame's would keep them alive. Among ``taken`` names, a number is added.
    """
    kind = type(unwrapped(model)).__name__
    variable = _variable(unwrapped(model))
    label = f"{variable} ({kind})" if variable else kind
    number = 1
    while (numbered := label if number == 1 else f"{label} {number}") in taken:
        number += 1
    return numbered


def word_of(label: str) -> str:
    """A label's first word, to be part of a log line or a file's name."""
    name, _, rest = label.partition(" ")
    number = rest.rpartition(" ")[2]
    return f"{name}{number}" if number.isdigit() else name


def _variable(model: Module) -> str:
    main = getattr(sys.modules.get("__main__"), "__dict__", {})
    for name, value in list(main.items()):
        if issubclass(type(value), Module) and not name.startswith("_") and unwrapped(value) is model:
            return str(name)
    return ""
