"""Arguments that several commands share."""

from __future__ import annotations

import argparse

_WINDOWS = 20


def positive(text: str) -> int:
    """A whole number from 1."""
    return _at_least(text, 1)


def not_negative(text: str) -> int:
    """A whole number from 0."""
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value


def add_run_log(parser: argparse.ArgumentParser) -> None:
    """The run log, how many of its windows to average, and how far to open folded layers."""
    parser.add_argument("file", metavar="FILE", help="a run log, as scope.log_to(FILE) writes it")
    parser.add_argument(
        "--last", type=positive, default=_WINDOWS, metavar="N", help=f"average the last N windows (default: {_WINDOWS})"
    )
    parser.add_argument(
        "--depth", type=not_negative, default=0, metavar="D", help="open folded layers D levels deep (default: 0)"
    )
