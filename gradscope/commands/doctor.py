"""``gradscope doctor``: whether this installation works."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gradscope.commands.command import Command
from gradscope.versions import OLDEST, leading

_OURS = "torch-gradscope"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what was looked at.
        found: what is so.
        problem: what to do about it; empty where all is well.
    """

    subject: str
    found: str
    problem: str = ""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options."""


def _run(options: argparse.Namespace) -> int:
    findings = [*_versions(), _import_name(), _kernels(), _output(getattr(sys.stdout, "encoding", None))]
    for finding in findings:
        print(f"{'!!' if finding.problem else 'ok'}  {finding.subject:<12}{finding.found}")
        if finding.problem:
            print(f"{'':16}{finding.problem}")
    return int(any(finding.problem for finding in findings))


def _versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", python, "" if sys.version_info >= (3, 10) else "gradscope needs 3.10 or later")
    for name, least in OLDEST.items():
        yield _dependency(name, least)
    from gradscope import __version__

    yield Finding("gradscope", f"{__version__} in {_here()}")


def _dependency(name: str, least: tuple[int, ...]) -> Finding:
    wanted = ".".join(map(str, least))
    from importlib.metadata import version

    try:
        module = importlib.import_module(name)
    except Exception as error:  # a broken installation fails with whatever its own code raises
        return Finding(name, "cannot be imported", f"{type(error).__name__}: {error}; install {name}>={wanted}")
    found = str(getattr(module, "__version__", None) or version(name))
    return Finding(name, found, "" if leading(found) >= least else f"gradscope needs {wanted} or later")


def _import_name() -> Finding:
    """Whether another distribution installs a package of our name: whichever was installed last then wins."""
    from importlib.metadata import packages_distributions

    owners = sorted(set(packages_distributions().get("gradscope", ())))
    others = [owner for owner in owners if owner.lower().replace("_", "-") != _OURS]
    if others:
        return Finding(
            "import name",
            f"'gradscope' is installed by {' and '.join(owners)}",
            f"They overwrite each other's files: pip uninstall {' '.join(others)}, "
            f"then pip install --force-reinstall --no-deps {_OURS}",
        )
    return Finding("import name", f"'gradscope' belongs to {owners[0] if owners else 'a source tree'}")


def _kernels() -> Finding:
    """What builds per-sample gradients on CPUs; without kernels torch's operators do, which is no fault."""
    try:
        from gradscope.kernels import ABSENT, INSTRUCTIONS
    except ImportError:
        return Finding("kernels", "not looked for: they need torch")
    if ABSENT:
        return Finding("kernels", f"none, torch's operators do their work: {ABSENT}")
    return Finding("kernels", f"compiled, {INSTRUCTIONS}")


def _output(encoding: str | None) -> Finding:
    from gradscope.reporter.glyphs import UNICODE, glyphs_for

    if glyphs_for(encoding) is UNICODE:
        return Finding("output", f"{encoding or 'in memory'}: {UNICODE.levels} {UNICODE.norm}")
    return Finding("output", f"{encoding}: reports are drawn in ASCII; PYTHONIOENCODING=utf-8 gives all characters")


def _here() -> Path:
    return Path(__file__).resolve().parents[1]


DOCTOR = Command("check this installation", _add_arguments, _run)
