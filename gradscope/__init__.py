"""What is inside the gradient that an optimizer is about to apply.

One line beside an unmodified PyTorch training loop::

    scope = gradscope.watch(model, optimizer)
    ...                                         # the loop, as it was
    print(scope.report())

The public names:

- ``watch`` and the ``Scope`` it returns; ``Report``, ``Stats``, ``Outlier`` and ``Coverage``, the frozen records.
- ``reference``: per-sample gradients by the slow, obvious way, to compare with.
- ``checks``: assertions that a gradient is right, and what is wrong where it is not.
- ``register_rule``: per-sample gradients of a layer of your own.
- ``GradscopeError`` and its subclasses, one per cause.

Importing this package imports neither torch nor rich: pytest imports it with its plugin, in runs that need neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope import checks, reference
    from gradscope.coverage import Coverage
    from gradscope.errors import (
        AlreadyWatchedError,
        ClosedScopeError,
        DuplicateRuleError,
        ForeignOptimizerError,
        GradscopeError,
        InvalidAnnotationError,
        InvalidArgumentError,
        InvalidRunLogError,
        MissingDependencyError,
        MixedSamplesError,
        StateMismatchError,
        UnsupportedTorchError,
        UnwatchableModelError,
    )
    from gradscope.report import Outlier, Report, Stats
    from gradscope.rules import register_rule
    from gradscope.scope import Scope, watch

    __version__: str

#: Public name → the module that holds it; a submodule holds itself.
_HOMES = {
    "checks": "gradscope.checks",
    "reference": "gradscope.reference",
    "Coverage": "gradscope.coverage",
    "Outlier": "gradscope.report",
    "Report": "gradscope.report",
    "Stats": "gradscope.report",
    "Scope": "gradscope.scope",
    "watch": "gradscope.scope",
    "register_rule": "gradscope.rules",
    "AlreadyWatchedError": "gradscope.errors",
    "ClosedScopeError": "gradscope.errors",
    "DuplicateRuleError": "gradscope.errors",
    "ForeignOptimizerError": "gradscope.errors",
    "GradscopeError": "gradscope.errors",
    "InvalidAnnotationError": "gradscope.errors",
    "InvalidArgumentError": "gradscope.errors",
    "InvalidRunLogError": "gradscope.errors",
    "MissingDependencyError": "gradscope.errors",
    "MixedSamplesError": "gradscope.errors",
    "StateMismatchError": "gradscope.errors",
    "UnsupportedTorchError": "gradscope.errors",
    "UnwatchableModelError": "gradscope.errors",
}

__all__ = [
    "AlreadyWatchedError",
    "ClosedScopeError",
    "Coverage",
    "DuplicateRuleError",
    "ForeignOptimizerError",
    "GradscopeError",
    "InvalidAnnotationError",
    "InvalidArgumentError",
    "InvalidRunLogError",
    "MissingDependencyError",
    "MixedSamplesError",
    "Outlier",
    "Report",
    "Scope",
    "StateMismatchError",
    "Stats",
    "UnsupportedTorchError",
    "UnwatchableModelError",
    "__version__",
    "checks",
    "reference",
    "register_rule",
    "watch",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    value = home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch-gradscope")
    except PackageNotFoundError:  # a checkout on the path that nobody installed
        return "0+unknown"
