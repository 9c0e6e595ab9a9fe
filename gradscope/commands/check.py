"""``gradscope check module:function``: whether a training step accumulates the right gradient."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

from gradscope.commands.command import Command
from gradscope.errors import InvalidArgumentError


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns (step, model, loss_fn, batch), or these and a dict of further "
        "arguments of gradscope.checks.assert_accumulates",
    )


def _run(options: argparse.Namespace) -> int:
    arguments, keywords = _loaded(options.target)
    from gradscope.checks import diagnose
    from gradscope.checks.message import accumulation_message

    try:
        found = diagnose(*arguments, **keywords)
    except InvalidArgumentError:
        raise
    except Exception as error:  # the user's step, model or loss failed: that is no verdict on it
        raise InvalidArgumentError(f"{options.target}: the step could not be run: {_said(error)}") from error
    if found.right:
        print(f"{options.target}: right. The accumulated gradient is the gradient of the whole minibatch.")
        return 0
    print(f"{options.target}: wrong.\n\n{accumulation_message(found)}")
    return 1


def _loaded(target: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the function returns: four things, and keywords."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise InvalidArgumentError(f"{target!r}: name a function as module:function, for example train.tests:case.")
    sys.path.insert(0, os.getcwd())
    try:
        function = importlib.import_module(module_name)
        for part in name.split("."):
            function = getattr(function, part)
        returned = function()  # type: ignore[operator]
    except Exception as error:  # importing and calling users' code can fail in any way
        raise InvalidArgumentError(f"{target}: could not be imported or called: {_said(error)}") from error
    if not isinstance(returned, tuple) or len(returned) not in (4, 5):
        raise InvalidArgumentError(
            f"{target} must return (step, model, loss_fn, batch), or these and a dict; it returned "
            f"{type(returned).__name__}{f' of {len(returned)}' if isinstance(returned, tuple) else ''}."
        )
    return returned[:4], dict(returned[4]) if len(returned) == 5 else {}


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


CHECK = Command("check that a training step accumulates the right gradient", _add_arguments, _run)
