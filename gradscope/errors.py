"""The errors that gradscope raises: one tree, one class per cause."""

from __future__ import annotations


class GradscopeError(Exception):
    """Base of every error that gradscope raises on purpose."""


class UnwatchableModelError(GradscopeError):
    """The model cannot be watched: it has no trainable parameters, lies on the meta device, or hooks cannot see inside."""


class UnsupportedTorchError(GradscopeError):
    """The torch that is installed is older than those that gradscope works with."""


class AlreadyWatchedError(GradscopeError):
    """The model, or a part of it, is watched by another scope that is still open."""


class ForeignOptimizerError(GradscopeError):
    """An optimizer owns none of the watched model's parameters, so its steps would close no window."""


class InvalidArgumentError(GradscopeError, ValueError):
    """An argument has a value that cannot work."""


class InvalidAnnotationError(GradscopeError, ValueError):
    """Weights or ids given for a micro-step do not fit its samples."""


class ClosedScopeError(GradscopeError):
    """The scope was closed, so it can measure nothing more."""


class DuplicateRuleError(GradscopeError):
    """A layer type already has a rule; a second one would silently replace it."""


class MixedSamplesError(GradscopeError):
    """A layer mixes the samples of a batch, so per-sample gradients do not exist there."""


class InvalidRunLogError(GradscopeError, ValueError):
    """A file is not a gradscope run log, or its schema is one that this version cannot read."""


class StateMismatchError(GradscopeError, ValueError):
    """A saved state was made for another model or by another version."""


class MissingDependencyError(GradscopeError):
    """Something optional was asked for, and a package that it needs is not installed."""
