"""The user's script or module, run as if Python itself had been given it."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any

from gradscope.errors import InvalidArgumentError

#: What people write before the script's name out of habit.
_LAUNCHERS = frozenset({"python", "python3", "torchrun", "accelerate", "deepspeed"})


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    Attributes:
        target: path of a script, or the name of a module.
        arguments: what it is to find in ``sys.argv`` after its own name.
        is_module: whether it is a module (``-m``).
    """

    target: str
    arguments: tuple[str, ...]
    is_module: bool = False

    @classmethod
    def named(cls, words: Sequence[str], is_module: bool) -> Program:
        """The program that the words of a command line name.

        Raises:
            InvalidArgumentError: there is no such script, or none was named.
        """
        if not words:
            raise InvalidArgumentError("run: name what to run: gradscope run SCRIPT ARGUMENTS, or -m MODULE ARGUMENTS.")
        if not is_module:
            _check_script(words[0])
        return cls(words[0], tuple(words[1:]), is_module)

    def prepared(self) -> Callable[[], None]:
        """What runs it to its end, with all that it expects around itself in place.

        The packages of a module are imported by this, and what they raise is raised.

        Raises:
            InvalidArgumentError: there is no such module.
        """
        return self._module() if self.is_module else self._script()

    def _script(self) -> Callable[[], None]:
        path = os.path.abspath(self.target)
        self._enter(self.target, os.path.dirname(os.path.realpath(path)))
        with io.open_code(path) as file:
            source = file.read()
        main = _new_main(path, None, SourceFileLoader("__main__", path))
        # Without dont_inherit this file's own __future__ imports would hold in the script.
        return lambda: exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)

    def _module(self) -> Callable[[], None]:
        self._enter("-m", os.getcwd())
        spec, code = _module_code(self.target)
        sys.argv[0] = spec.origin or self.target
        main = _new_main(spec.origin, spec, spec.loader)
        return lambda: exec(code, main.__dict__)

    def _enter(self, name: str, folder: str) -> None:
        sys.argv = [name, *self.arguments]
        if not getattr(sys.flags, "safe_path", False):
            # Python put the folder of its own program here, which was this command line.
            sys.path[0] = folder


def _check_script(name: str) -> None:
    if os.path.isfile(name):
        return
    if os.path.isdir(name):
        raise InvalidArgumentError(f"run: {name} is a directory; name the script inside it.")
    advice = ""
    if os.path.basename(name) in _LAUNCHERS:
        advice = (
            " Name the script itself: gradscope run train.py; under torchrun: torchrun ... -m gradscope run train.py."
        )
    elif name.startswith("-"):
        advice = (
            " Options of gradscope run stand before the script, those of the script after it; see gradscope run --help."
        )
    raise InvalidArgumentError(f"run: there is no file {name}.{advice}")


def _new_main(path: str | None, spec: ModuleSpec | None, loader: Any) -> types.ModuleType:
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __builtins__=builtins, __file__=path, __spec__=spec, __loader__=loader, __cached__=None,
        __package__=spec.parent if spec is not None else None,
    )  # fmt: skip
    # It stays there to the end: classes are pickled by this name, and spawned processes look here for what to import.
    sys.modules["__main__"] = main
    return main


def _module_code(name: str) -> tuple[ModuleSpec, types.CodeType]:
    spec = _found(name)
    if spec.submodule_search_locations is not None:
        spec = _found(f"{name}.__main__")
    loader: Any = spec.loader
    code = loader.get_code(spec.name) if hasattr(loader, "get_code") else None
    if code is None:
        raise InvalidArgumentError(f"run: the module {name} has no Python code to run.")
    return spec, code


def _found(name: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise  # a package on the way was found, and itself imports something that is missing
        spec = None
    except ValueError:  # a name that no module can have, or a module without a spec
        spec = None
    if spec is None:
        raise InvalidArgumentError(f"run: there is no module {name}.")
    return spec
