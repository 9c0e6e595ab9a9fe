"""The header of a run log: found, checked, and explained where there is none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradscope.errors import InvalidRunLogError
from gradscope.runlog import decode
from gradscope.runlog.schema import HEADER, MARK, VERSION
from gradscope.window import ParameterInfo

_LOOKED_AT = 4096
_MAGIC = ((b"\x1f\x8b", "gzip-compressed: unpack it first"), (b"PK\x03\x04", "a zip archive or a torch checkpoint"))


def newest_header(path: str | os.PathLike[str]) -> tuple[ParameterInfo, ...]:
    """The last parameter table that a run log holds.

    Raises:
        InvalidRunLogError: the file is no run log, or one that this version cannot read.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(_LOOKED_AT)
        if not HEADER.match(start):
            raise InvalidRunLogError(not_a_log(path, start))
        file.seek(0)
        found = [line for line in file if line.endswith(b"\n") and HEADER.match(line)]
    if not found:
        raise InvalidRunLogError(not_a_log(path, start))
    return read_header(path, found[-1])


def read_header(path: str | os.PathLike[str], line: bytes) -> tuple[ParameterInfo, ...]:
    """The parameter table that a header line holds.

    Raises:
        InvalidRunLogError: the line is damaged, or of a version that cannot be read.
    """
    try:
        header = decode.record(line)
        _check_version(path, header)
        return decode.parameters(header)
    except InvalidRunLogError:
        raise
    except ValueError as error:
        raise InvalidRunLogError(
            f"{Path(path)} cannot be read as a run log: {error}. Without its first line the others have no meaning."
        ) from error


def _check_version(path: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
    version = header.get(MARK)
    if version == VERSION and not isinstance(version, bool):
        return
    newer = isinstance(version, int) and version > VERSION
    advice = "It was written by a newer gradscope: upgrade this one." if newer else "No gradscope wrote such a version."
    raise InvalidRunLogError(
        f"{Path(path)} is a run log of schema {version!r}, and this gradscope reads schema {VERSION}. {advice}"
    )


def not_a_log(path: str | os.PathLike[str], start: bytes) -> str:
    """The sentence that says what a file is instead of a run log, as far as its beginning shows."""
    if not start:
        return f"{Path(path)} is empty: no window was logged to it yet, or it is no run log."
    if HEADER.match(start):
        return (
            f"{Path(path)} breaks off inside its first line: the run ended while it was made. Delete it and log again."
        )
    return (
        f"{Path(path)} is not a gradscope run log: it is {_kind(start)}. "
        f'A run log is made by scope.log_to(path), and its first line begins with {{"{MARK}".'
    )


def _kind(start: bytes) -> str:
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    if start.lstrip()[:1] in (b"{", b"["):
        return "JSON of another kind"
    if b"\0" in start or not _is_text(start):
        return "binary"
    return "text of another kind"


def _is_text(start: bytes) -> bool:
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return len(start) - error.start < 4 and len(start) == _LOOKED_AT  # a character cut by where the look ended
    return True
