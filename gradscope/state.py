"""What a resumed run reads back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradscope.errors import GradscopeError, StateMismatchError
from gradscope.runlog import decode
from gradscope.runlog.encode import header_line, window_line
from gradscope.runlog.header import read_header
from gradscope.window import ParameterInfo, Window


def state_of(
    windows: Sequence[Window],
    parameters: Sequence[ParameterInfo],
    index: int,
    measured: int,
    algorithms: Mapping[str, str],
) -> dict[str, Any]:
    """The windows' sums, the counts of windows and the algorithms that were timed, as numbers and strings."""
    return {
        "header": header_line(parameters).decode(),
        "windows": [window_line(window, parameters).decode() for window in windows],
        "index": index,
        "measured": measured,
        "algorithms": dict(algorithms),
    }


def windows_of(state: Mapping[str, Any], parameters: Sequence[ParameterInfo]) -> list[Window]:
    """The windows of a saved state.

    Raises:
        StateMismatchError: it is no state, or that of a model with other parameters.
    """
    try:
        found = read_header("state", state["header"].encode())
        names = [info.name for info in found]
        windows = [decode.window(decode.record(line.encode()), names)[0] for line in state["windows"]]
        int(state["index"]), int(state["measured"])
        dict(state.get("algorithms", {}))
    except (KeyError, TypeError, AttributeError, ValueError, GradscopeError) as error:
        raise StateMismatchError(
            f"load_state_dict: this is not what Scope.state_dict() gave ({error}). Pass that dictionary unchanged."
        ) from error
    if [(info.name, info.shape) for info in found] != [(info.name, info.shape) for info in parameters]:
        raise StateMismatchError(
            f"load_state_dict: the state is of a model with {len(found)} parameters, which are not the {len(parameters)} of this "
            "one. Load it into a scope of the model that it was saved from."
        )
    return windows
