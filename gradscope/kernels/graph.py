"""The walk over an autograd graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gradscope.kernels import loaded


class Walked(NamedTuple):
    """What was come across.

    Attributes:
        nodes: each once, in the order of the walk.
        names: theirs; in the place of one that needs a closer look, the node.
        closer: where these stand.
    """

    nodes: dict[Any, None]
    names: list[Any]
    closer: list[int]


def walk(outputs: list[Any], names: Mapping[type, Any]) -> Walked | None:
    """All nodes that some lead to, depth first, the last of them first.

    Args:
        outputs: nodes of autograd.
        names: of types of nodes; None for those that lead on to nothing, and are left out; ``...`` for those whose nodes need a
            closer look.

    Returns:
        None where the compiled module is missing, or a node is of a type that has no name here.
    """
    found = loaded.compiled().walk(outputs, names) if loaded.VECTOR else None
    return None if found is None else Walked(*found)
