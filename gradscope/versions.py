"""What gradscope needs installed."""

from __future__ import annotations

from gradscope.errors import UnsupportedTorchError

#: The oldest releases that the tests pass with.
OLDEST = {"torch": (2, 10), "rich": (13,), "numpy": (1,)}


def leading(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13) of ``2.13.0+cpu``."""
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def check_torch(version: str) -> None:
    """Refuse a torch in which a second look at a graph could end the user's run.

    Args:
        version: ``torch.__version__``.

    Raises:
        UnsupportedTorchError: it is too old.
    """
    if leading(version) < OLDEST["torch"]:
        wanted = ".".join(map(str, OLDEST["torch"]))
        raise UnsupportedTorchError(
            f"watch: torch {version} is installed, and gradscope needs {wanted} or later: before that, torch does not say what a "
            "checkpoint may run only once, and a run could end by being watched. Install a newer torch; gradscope doctor shows "
            "what else is there."
        )
